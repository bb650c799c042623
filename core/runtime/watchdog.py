"""When a worker that has not ended must be taken for one that hangs."""

from __future__ import annotations

ALIVE_EVERY_S = 1.0
"""So often a worker says that it is alive, and what has run for the longest."""
LOOK_EVERY_S = 0.1
"""So often its serving process looks; a look takes some 20 us."""


class Watchdog:
    """Counts what one worker says and does not say. Time is told by looks, which a stopped machine does not take.

    Args:
        timeout_s: After so long a worker hangs; None for never.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._num_silent = 0
        self._reason: str | None = None

    def heard(self) -> None:
        """The worker has said something."""
        self._num_silent = 0

    def told(self, what: str, seconds: float) -> None:
        """The worker has said what it has been at for so long."""
        if self._timeout_s is not None and seconds >= self._timeout_s:
            self._reason = f"{what} has not ended for {seconds:.0f} s"

    def look(self) -> str | None:
        """Called every `LOOK_EVERY_S`: why the worker is taken to hang, or None."""
        self._num_silent += 1
        silent_s = self._num_silent * LOOK_EVERY_S
        if self._reason is None and self._timeout_s is not None and silent_s >= self._timeout_s + ALIVE_EVERY_S:
            self._reason = f"nothing was heard of it for {silent_s:.0f} s"
        return self._reason
