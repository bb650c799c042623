"""A recorder of forwards for machines without a GPU: a replay computes again, from the same places to the same places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from sixfold.core.rendezvous.streams import tensors_in


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
        places = list(tensors_in(found[0]))
        for place in places:  # a recording computes nothing
            place.fill_(float("nan") if place.is_floating_point() else 0)

        def replay() -> None:
            call()
            for place, value in zip(places, tensors_in(found[0]), strict=True):
                place.copy_(value)

        return replay
