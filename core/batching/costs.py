"""Asks sequences what they want of the next step, and keeps those whose answer is none: they would wait for ever, unheard."""

from __future__ import annotations

from typing import Any

from sixfold.core.batching.entry import Entry
from sixfold.core.batching.model import StepModel
from sixfold.core.batching.returned import wrong_return
from sixfold.core.batching.selection import Selection
from sixfold.core.messages import Cost


class Costs:
    """The costs of one scheduler's sequences. Owner: the device thread.

    Args:
        model: Asked.
    """

    def __init__(self, model: StepModel[Any, Any, Any]) -> None:
        self._model = model
        self._wrong: dict[Entry, object] = {}  # with what came in place of a cost

    @property
    def any_wrong(self) -> bool:
        """Whether `refuse` has something to do."""
        return bool(self._wrong)

    def ask(self, entry: Entry) -> None:
        """Sets the cost of a sequence that waits: None of one that was never stepped is no answer."""
        cost: object = self._model.cost(entry.sequence)
        if isinstance(cost, Cost):
            entry.cost = cost
            return
        entry.cost = None
        if cost is not None or not entry.was_stepped:
            self._wrong[entry] = cost

    def ask_running(self, entries: dict[Entry, None], now_s: float) -> list[Entry]:
        """Sets the costs of what runs; returns what asks for a step. The others work elsewhere, and so do not wait."""
        ready: list[Entry] = []
        cost_of = self._model.cost
        for entry in entries:
            cost = entry.cost = cost_of(entry.sequence)
            if cost is None:
                entry.waiting_since_s = now_s
            elif isinstance(cost, Cost):  # pyright: ignore[reportUnnecessaryIsInstance]  # plugins may be untyped
                ready.append(entry)
            else:
                self._wrong[entry] = cost
                entry.cost = None
        return ready

    def forget(self, entry: Entry) -> None:
        """The sequence has left."""
        self._wrong.pop(entry, None)

    def refuse(self) -> Selection:
        """An empty step that rejects those whose answer was none."""
        selection = Selection(0)
        for entry, cost in self._wrong.items():
            selection.rejected.append((entry, wrong_return(self._model, "cost", cost, "a Cost")))
        self._wrong.clear()
        return selection
