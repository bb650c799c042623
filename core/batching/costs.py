"""Asks sequences what they want of the next step, and keeps those whose answer is none: they would wait for ever, unheard, or
end the worker with all that it does for others."""

from __future__ import annotations

from typing import Any

from sixfold.core.batching.entry import Entry
from sixfold.core.batching.model import DeviceLost, StepModel
from sixfold.core.batching.returned import SEE_LOG, wrong_return
from sixfold.core.batching.selection import Selection
from sixfold.core.errors import RequestError, StepFailed
from sixfold.core.messages import Cost


class Costs:
    """The costs of one scheduler's sequences. Owner: the device thread.

    Args:
        model: Asked.
    """

    def __init__(self, model: StepModel[Any, Any, Any]) -> None:
        self._model = model
        self._wrong: dict[Entry, RequestError] = {}

    @property
    def any_wrong(self) -> bool:
        """Whether `refuse` has something to do."""
        return bool(self._wrong)

    def ask(self, entry: Entry) -> None:
        """Sets the cost of a sequence that waits: None of one that was never stepped is no answer."""
        cost = entry.cost = self._cost_of(entry)
        if cost is None and not entry.was_stepped and entry not in self._wrong:
            self._wrong[entry] = wrong_return(self._model, "cost", None, "a Cost")

    def ask_running(self, entries: dict[Entry, None], now_s: float) -> list[Entry]:
        """Sets the costs of what runs; returns what asks for a step. The others work elsewhere, and so do not wait."""
        ready: list[Entry] = []
        for entry in entries:
            cost = entry.cost = self._cost_of(entry)
            if cost is not None:
                ready.append(entry)
            else:
                entry.waiting_since_s = now_s
        return ready

    def _cost_of(self, entry: Entry) -> Cost | None:
        try:
            cost: object = self._model.cost(entry.sequence)
        except DeviceLost:
            raise
        except RequestError as error:
            self._wrong[entry] = error
        except Exception as error:  # the border between the core and a model's code
            failure = self._wrong[entry] = StepFailed(SEE_LOG)
            failure.__cause__ = error
        else:
            if isinstance(cost, Cost):
                return cost
            if cost is not None:
                self._wrong[entry] = wrong_return(self._model, "cost", cost, "a Cost")
        return None

    def forget(self, entry: Entry) -> None:
        """The sequence has left."""
        self._wrong.pop(entry, None)

    def refuse(self) -> Selection:
        """An empty step that rejects those whose answer was none."""
        selection = Selection(0)
        selection.rejected.extend(self._wrong.items())
        self._wrong.clear()
        return selection
