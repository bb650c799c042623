"""A model that computes items by one forward: what its base class makes of three methods."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from sixfold.core.batching.forward_model import ForwardModel
from sixfold.core.batching.model import Finish, ModelInfo
from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Finished, Request, Usage
from sixfold.core.runtime.local_replica import LocalReplica


class Numbers(msgspec.Struct, frozen=True):
    values: tuple[int, ...]


class SquareModel(ForwardModel[int, int, Numbers, Numbers]):
    """Squares numbers, all that are there at once; no number is above 100."""

    def __init__(self, *, forgets_one: bool = False) -> None:
        self.forwards: list[list[int]] = []
        self._forgets_one = forgets_one

    def estimate_units(self, request: Request[Numbers]) -> int:
        return len(request.input.values)

    def items(self, request: Request[Numbers]) -> Sequence[int]:
        if max(request.input.values) > 100:
            raise InvalidRequest("Too large.", param="values")
        return request.input.values

    def forward(self, items: Sequence[int]) -> Sequence[int]:
        self.forwards.append(list(items))
        if 13 in items:
            raise ArithmeticError("unlucky")
        return [item * item for item in items][1 if self._forgets_one else 0 :]

    def result(self, request: Request[Numbers], rows: Sequence[int]) -> Finish[Numbers]:
        return Finish(result=Numbers(tuple(rows)), usage=Usage(counts={"numbers": len(rows)}))


def asked(request_id: str, *values: int) -> Request[Numbers]:
    return Request(request_id=request_id, input=Numbers(values), arrived_s=0.0)


async def results(model: SquareModel, *requests: Request[Numbers]) -> list[object]:
    replica = LocalReplica(model)
    try:
        streams = [replica.submit(request) for request in requests]
        return [(await stream.next_events())[-1] for stream in streams]
    finally:
        await replica.close()


async def test_the_rows_of_a_request_come_back_in_the_order_of_its_items() -> None:
    (end,) = await results(SquareModel(), asked("a", 3, 1, 2))
    assert isinstance(end, Finished)
    assert end.result == Numbers((9, 1, 4))  # pyright: ignore[reportUnknownMemberType]
    assert end.usage.counts == {"numbers": 3}


async def test_items_of_one_request_share_a_forward() -> None:
    model = SquareModel()
    await results(model, asked("a", *range(1, 9)))
    assert model.forwards == [list(range(1, 9))]


async def test_bad_input_fails_its_request_alone() -> None:
    bad, good = await results(SquareModel(), asked("bad", 101), asked("good", 5))
    assert getattr(bad, "error", None).__class__ is InvalidRequest
    assert isinstance(good, Finished)
    assert good.result == Numbers((25,))  # pyright: ignore[reportUnknownMemberType]


async def test_an_item_that_makes_the_forward_fail_fails_its_request_alone() -> None:
    unlucky, lucky = await results(SquareModel(), asked("unlucky", 13), asked("lucky", 7))
    assert getattr(unlucky, "error", None) is not None
    assert isinstance(lucky, Finished)


async def test_a_forward_that_loses_rows_is_not_believed() -> None:
    (end,) = await results(SquareModel(forgets_one=True), asked("a", 1, 2))
    assert getattr(end, "error", None) is not None


def test_an_items_work_is_one_unit_unless_the_model_says_more() -> None:
    model = SquareModel()
    (sequence,) = model.prepare(asked("a", 2), None)
    cost = model.cost(sequence)
    assert (cost.units, cost.min_units) == (1, 1)
    assert model.info == ModelInfo()


def test_what_is_missing_in_a_subclass_is_named() -> None:
    class Lazy(ForwardModel[int, int, Numbers, Numbers]):
        pass

    with pytest.raises(TypeError, match=r"estimate_units.*forward.*items.*result"):
        Lazy()  # type: ignore[abstract]
