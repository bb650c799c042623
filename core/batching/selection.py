"""One step's batch while it is being filled, and what a sequence's cost says of its place in it."""

from __future__ import annotations

from typing import Any

from sixfold.core.batching.entry import Entry
from sixfold.core.batching.model import Granted
from sixfold.core.errors import InvalidRequest, RequestError
from sixfold.core.messages import Cost


class Selection:
    """One step's batch, being filled. Owner: the scheduler, then the step loop.

    Args:
        units: The step's budget.
        key: The batch key of all its sequences.
    """

    __slots__ = ("entries", "key", "limited", "preempted", "rejected", "units", "units_left")

    def __init__(self, units: int, key: object = None) -> None:
        self.units_left = units
        self.units = 0
        self.key = key
        self.entries: dict[Entry, int] = {}  # with the granted units
        self.rejected: list[tuple[Entry, RequestError]] = []
        self.preempted = False
        self.limited = False  # by the budget: more could have been done

    @property
    def granted(self) -> list[Granted[Any]]:
        """The batch as the model takes it."""
        return [Granted(entry.sequence, units) for entry, units in self.entries.items()]

    def accepts(self, cost: Cost) -> bool:
        """Whether a sequence of this cost may join."""
        if cost.batch_key != self.key:
            return False
        if cost.units > self.units_left:
            self.limited = True
        return not self.entries or cost.min_units <= self.units_left

    def wanted_units(self, cost: Cost) -> int:
        """What to grant: all it can use, what is left, or (for the first) the least that makes progress."""
        return max(cost.min_units, min(cost.units, self.units_left))

    def add(self, entry: Entry, units: int) -> None:
        """Puts a sequence into the step."""
        self.entries[entry] = units
        self.units += units
        self.units_left -= units

    def reject(self, entry: Entry) -> None:
        """Says that a sequence, alone on the device and still without room, never will fit."""
        message = "The input needs more memory than the model has. Shorten it or ask for less output."
        self.rejected.append((entry, InvalidRequest(message, code="input_too_large")))

    def remove(self, entry: Entry) -> int:
        """Takes a sequence out again, if it is in; returns what it had been granted."""
        units = self.entries.pop(entry, 0)
        self.units -= units
        self.units_left += units
        return units


def key_of(entry: Entry) -> object:
    """With what a sequence may share its next step."""
    return None if entry.cost is None else entry.cost.batch_key


def is_divisible(entry: Entry) -> bool:
    """Whether a step may do a part of what it asks for."""
    return entry.cost is not None and entry.cost.min_units < entry.cost.units
