"""Shows downloads, conversions and loads: bars on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LINE_EVERY_FRACTION = 0.25


class ProgressReport:
    """A context in which `update` may be called from any thread.

    Args:
        stream: Where to show it; bars are drawn only on a terminal.
        say: Gets each line in place of the stream, which then gets no bars either.
    """

    def __init__(self, stream: TextIO, *, say: Callable[[str], None] | None = None) -> None:
        self._stream = stream
        self._say = say or self._print_line
        self._lock = threading.Lock()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, float] = {}
        if say is None and stream.isatty():
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                TimeRemainingColumn(),
                console=Console(file=stream),
                refresh_per_second=4,  # the models that load need the processor more
            )

    def __enter__(self) -> ProgressReport:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop_bars()

    def stop_bars(self) -> None:
        """Leaves the terminal to others; what is told from now on appears as lines."""
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def update(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """A `sixfold.core.hookspecs.Progress`."""
        amount = f"{done_bytes / 1e6:.1f} of {total_bytes / 1e6:.1f} MB" if total_bytes else ""
        self._show(what, done_bytes / total_bytes if total_bytes else None, amount)

    def update_fraction(self, what: str, fraction: float) -> None:
        """Shows progress that has no bytes: ``fraction`` from 0 to 1 of ``what`` is done."""
        self._show(what, fraction, f"{fraction:.0%}")

    def _show(self, what: str, fraction: float | None, amount: str) -> None:
        with self._lock:
            if self._bars is None:
                self._print(what, fraction or 0.0, amount)
                return
            total = None if fraction is None else 1.0
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, amount=amount)
            self._bars.update(self._tasks[what], completed=fraction or 0.0, total=total, amount=amount)

    def _print_line(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a full disk or a closed pipe stops the telling, not the server
            print(line, file=self._stream, flush=True)

    def _print(self, what: str, fraction: float, amount: str) -> None:
        last = self._shown.get(what)
        ended = fraction >= 1.0 and (last is None or last < 1.0)
        if last is not None and not ended and fraction < last + _LINE_EVERY_FRACTION:
            return
        self._shown[what] = fraction
        self._say(f"{what}: {amount}" if amount else what)
