"""A recorder of forwards for machines without a GPU: a replay computes again, from the same places to the same places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Recorder:
    """Like the device's: reads where the arguments are when it is replayed, writes where the first answer was."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.fails_with: Exception | None = None

    def __call__(self, call: Callable[[], None]) -> Callable[[], None]:
        if self.fails_with is not None:
            raise self.fails_with
        self.num_recorded += 1
        found: Any = call.__closure__[[*call.__code__.co_freevars].index("found")].cell_contents  # type: ignore[index]
        call()
        answer: Any = found[0]
        answer[0].fill_(float("nan"))  # a recording computes nothing

        def replay() -> None:
            call()
            answer[0].copy_(found[0][0])

        return replay
