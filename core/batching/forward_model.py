"""The shortest way to a model: one forward for a batch of items. What such a model need not say is said here once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from sixfold.core.batching.model import Finish, Granted, InputT, Outcome, OutputT, StepModel
from sixfold.core.batching.returned import finish_of, units_of, wrong_return
from sixfold.core.messages import Cost, Request

ItemT = TypeVar("ItemT")
RowT = TypeVar("RowT")


class ForwardItem(Generic[ItemT, RowT]):
    """An item in the batch, and what the forward made of it. Owner: the device thread."""

    __slots__ = ("item", "row", "units")

    def __init__(self, item: ItemT, units: int) -> None:
        self.item = item
        self.units = units
        self.row: RowT | None = None


class ForwardModel(StepModel[ForwardItem[ItemT, RowT], InputT, OutputT], Generic[ItemT, RowT, InputT, OutputT]):
    """A `StepModel` whose requests are items, each of which is done after one forward.

    Items of many requests share a forward; how many is the core's choice, in the units that `units` names. A subclass
    brings ``estimate_units`` and the three methods below. What streams, or holds memory between steps, is a
    `StepModel` of its own.
    """

    @abstractmethod
    def items(self, request: Request[InputT]) -> Sequence[ItemT]:
        """What a request asks to be computed, ready for the forward: tokenized, decoded, checked. [pool]

        Raises:
            RequestError: The input is bad.
        """

    def units(self, item: ItemT) -> int:
        """The work that an item is, in the unit of ``estimate_units``; at least 1. [pool]"""
        return 1

    @abstractmethod
    def forward(self, items: Sequence[ItemT]) -> Sequence[RowT]:
        """Computes the items of one step, and returns one row for each, in order. [device]

        A row must not depend on the other items: see `Family.batch_tolerance`. It may be called again for fewer of them.
        """

    @abstractmethod
    def result(self, request: Request[InputT], rows: Sequence[RowT]) -> Finish[OutputT]:
        """Makes the answer of the rows of a request's items, in order. [pool]"""

    def prepare(self, request: Request[InputT], piece: object) -> Sequence[ForwardItem[ItemT, RowT]]:
        """See `StepModel`."""
        items = self.items(request)
        if items is None:  # pyright: ignore[reportUnnecessaryComparison]  # plugins may be untyped
            raise wrong_return(self, "items", items, "a sequence of items")
        return [ForwardItem(item, units_of(self, "units", self.units(item))) for item in items]

    def cost(self, sequence: ForwardItem[ItemT, RowT]) -> Cost:
        """All of an item at once: a forward can't be cut."""
        return Cost(units=sequence.units, min_units=sequence.units)

    def step(self, batch: Sequence[Granted[ForwardItem[ItemT, RowT]]]) -> Sequence[Outcome[OutputT]]:
        """One forward; every item is done after it."""
        rows = self.forward([granted.sequence.item for granted in batch])
        if rows is None:  # pyright: ignore[reportUnnecessaryComparison]  # plugins may be untyped
            raise wrong_return(self, "forward", rows, "a sequence of rows")
        if len(rows) != len(batch):
            raise ValueError(f"{type(self).__name__}.forward made {len(rows)} rows of {len(batch)} items")
        for granted, row in zip(batch, rows, strict=True):
            granted.sequence.row = row
        done: Outcome[OutputT] = Outcome(done=True)
        return [done] * len(batch)

    def finish(self, request: Request[InputT], sequences: Sequence[ForwardItem[ItemT, RowT]]) -> Finish[OutputT]:
        """See `StepModel`."""
        rows: list[Any] = [sequence.row for sequence in sequences]  # set by the step
        return finish_of(self, "result", self.result(request, rows))
