"""Forwards recorded as CUDA graphs: a replay starts thousands of kernels by one call of the host.

A denoiser's step is bound by the host until its rows fill the card. A graph has a fixed number of rows and reads its
arguments from fixed places, so a merged forward is padded to the next recorded number. What stands in the padding are rows
of earlier forwards: rows must not see each other, which `TorchPipelineModel` checks when it first merges any.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sixfold.core.rendezvous.calls import ModuleCall, has_rows, is_row_list
from sixfold.core.rendezvous.memory import free_memory, is_out_of_memory
from sixfold.core.rendezvous.merge import cut, merge, split
from sixfold.core.rendezvous.streams import rebuilt, recreated
from sixfold.core.runtime.cuda_graphs import Capture

_log = logging.getLogger(__name__)

# A recording costs about three forwards; a shape that came so often comes again.
_RECORD_AT = 6
_MAX_REMEMBERED = 512


@dataclass(slots=True)
class _Recorded:
    """A forward at fixed places.

    Attributes:
        arguments: Where it reads, with `rows` rows.
        rows: Of each argument that has rows.
        replay: Computes `answer` from `arguments`.
        answer: Where it writes; holds until any graph runs again.
    """

    arguments: Mapping[str, Any]
    rows: int
    replay: Callable[[], None]
    answer: Any


class RowGraphs:
    """Recorded forwards of several shapes and numbers of rows. Owner: the device thread.

    Args:
        capture: Makes a call repeatable.
        device: Where the arguments must be.
        row_counts: Numbers of rows that are recorded; forwards of more rows than the largest are computed.
        max_graphs: How many are kept.
        max_units: Work of the largest that is recorded, padding included.
    """

    def __init__(
        self,
        capture: Capture,
        device: torch.device,
        row_counts: Sequence[int],
        *,
        max_graphs: int = 48,
        max_units: int = 1 << 17,
    ) -> None:
        self._capture = capture
        self._device = device
        self._row_counts = tuple(sorted(row_counts))
        self._max_graphs = max_graphs
        self._max_units = max_units
        self._graphs: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._sightings: Counter[Hashable] = Counter()
        self._refused: set[Hashable] = set()
        self.records_at_once = False
        self.num_replays = 0

    @property
    def num_recorded(self) -> int:
        """Graphs that are kept."""
        return len(self._graphs)

    def run(self, calls: Sequence[ModuleCall], *, pads: bool = False) -> list[Any] | None:
        """Replays the forward of merged calls, after recording it if its shape has come often enough.

        Args:
            calls: Their keys are equal.
            pads: Whether their rows are known not to see each other; else only a graph of as many rows will do.

        Returns:
            One answer a call; None if the forward must be computed.
        """
        first = calls[0]
        num_rows = sum(call.rows for call in calls)
        size = next((count for count in self._row_counts if count >= num_rows), None)
        if size is None or (size > num_rows and not pads) or first.alone or not _is_plain(first):
            return None
        units = sum(call.units for call in calls)
        if units // num_rows * size > self._max_units:
            return None
        key = (first.key, size)
        recorded = self._graphs.get(key)
        if recorded is None:
            if not self._is_due(key):
                return None
            recorded = self._recorded(key, calls, size)
            if recorded is None:
                return None
        self._graphs.move_to_end(key)
        for name, value in merge(calls).items():
            _fill(recorded.arguments[name], name, value, first.arguments[name], first)
        recorded.replay()
        self.num_replays += 1
        return split(_copied(cut(recorded.answer, 0, num_rows, recorded.rows, listed=False)), calls)

    def _is_due(self, key: Hashable) -> bool:
        if key in self._refused:
            return False
        self._sightings[key] += 1
        if len(self._sightings) > _MAX_REMEMBERED:
            self._sightings.clear()
        return self.records_at_once or self._sightings[key] >= _RECORD_AT

    def _recorded(self, key: Hashable, calls: Sequence[ModuleCall], size: int) -> _Recorded | None:
        """Records and keeps a forward; None if that can't be done, which is not tried again: it is computed all the same."""
        try:
            recorded = self._record(calls, size)
        except Exception as error:  # the border between the core and a model's code
            if len(self._refused) < _MAX_REMEMBERED:
                self._refused.add(key)
            _log.warning("%s can't be recorded as a CUDA graph: %s", type(calls[0].function).__name__, error)
            if is_out_of_memory(error):
                free_memory(error, self._device)
            return None
        self._graphs[key] = recorded
        if len(self._graphs) > self._max_graphs:
            self._graphs.popitem(last=False)
        return recorded

    def _record(self, calls: Sequence[ModuleCall], size: int) -> _Recorded:
        first = calls[0]
        merged = merge(calls)
        num_rows = sum(call.rows for call in calls)
        arguments = {
            name: self._placed(name, value, first.arguments[name], first, size - num_rows)
            for name, value in merged.items()
        }
        found: list[Any] = []

        def compute() -> None:
            found[:] = [first.function(**arguments)]

        replay = self._capture(compute)
        cut(found[0], 0, num_rows, size, listed=False)  # what can't be split is not recorded
        return _Recorded(arguments=arguments, rows=size, replay=replay, answer=found[0])

    def _placed(self, name: str, value: Any, own: Any, call: ModuleCall, num_padding: int) -> Any:
        """A copy of a merged argument at a place of its own, with the first row in the padding.

        ``own`` is the same argument of one of the calls: its rows tell a tensor with rows, as in `merge`.
        """
        if isinstance(value, Tensor):
            value = value.to(self._device)
            if not has_rows(name, own, call.rules, call.rows):
                return value.clone()
            return torch.cat((value, value[:1].expand(num_padding, *value.shape[1:]))).contiguous()
        if isinstance(value, Mapping):
            items = cast("Mapping[str, Any]", value)
            return {key: self._placed(key, item, own[key], call, num_padding) for key, item in items.items()}
        if isinstance(value, list | tuple):
            parts = zip(cast("Sequence[Any]", value), own, strict=True)
            return rebuilt(value, [self._placed(name, part, mine, call, num_padding) for part, mine in parts])
        return value


def _is_plain(call: ModuleCall) -> bool:
    """Whether all its rows are in tensors: lists of rows have no fixed place."""
    first = next(iter(call.arguments))
    return not any(
        isinstance(value, list | tuple) and is_row_list(name, cast("Sequence[Any]", value), call.rules, first)
        for name, value in call.arguments.items()
    )


def _fill(place: Any, name: str, value: Any, own: Any, call: ModuleCall) -> None:
    """Writes the rows of a merged argument; what has none is equal by the key."""
    if isinstance(value, Tensor):
        if has_rows(name, own, call.rules, call.rows):
            place[: len(value)].copy_(value, non_blocking=True)
    elif isinstance(value, Mapping):
        for key, item in cast("Mapping[str, Any]", value).items():
            _fill(place[key], key, item, own[key], call)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(cast("Sequence[Any]", value)):
            _fill(place[index], name, part, own[index], call)


def _copied(answer: Any) -> Any:
    if isinstance(answer, Tensor):
        return answer.clone()
    if isinstance(answer, Mapping):
        items = cast("Mapping[str, Any]", answer)
        return recreated(answer, {key: _copied(item) for key, item in items.items()})
    if isinstance(answer, list | tuple):
        return rebuilt(answer, [_copied(part) for part in cast("Sequence[Any]", answer)])
    return answer
