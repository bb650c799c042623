"""A recorder of forwards for machines without a GPU: a replay computes again, from the same places to the same places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast


class Recorder:
    """Like the device's: reads where the arguments are when it is replayed, writes where the first answer was."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.fails_with: Exception | None = None

    def __call__(self, call: Callable[[], None]) -> Callable[[], None]:
        if self.fails_with is not None:
            raise self.fails_with
        self.num_recorded += 1
        cells = dict(zip(call.__code__.co_freevars, call.__closure__ or (), strict=True))
        found = cast("list[Any]", cells["found"].cell_contents)
        call()
        answer = found[0]
        answer[0].fill_(float("nan"))  # a recording computes nothing

        def replay() -> None:
            call()
            answer[0].copy_(found[0][0])

        return replay
