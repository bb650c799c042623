"""A pipeline's side of the rendezvous when nobody else is there: calls are computed at once, on the calling thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sixfold.core.batching.parked import PipelineSide
from sixfold.core.rendezvous.calls import ModuleCall


class WarmUpSide(PipelineSide[ModuleCall, Any]):
    """Runs a pipeline while its model loads.

    Args:
        forward: Computes calls.
    """

    def __init__(self, forward: Callable[[Sequence[ModuleCall]], Sequence[Any]]) -> None:
        super().__init__()
        self._forward = forward
        self.units = 0
        self.num_calls = 0
        self.last_call: ModuleCall | None = None

    def call(self, call: ModuleCall) -> Any:
        """One forward."""
        self.last_call = call
        self.units += call.units // call.rows
        self.num_calls += 1
        return self._forward([call])[0]
