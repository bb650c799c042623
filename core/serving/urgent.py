"""Counts what runs above the batch class, so that work which can wait knows when it is alone with a model."""

from __future__ import annotations

from collections import Counter

from sixfold.core.messages import Priority


class UrgentWork:
    """Submissions in flight, by model, without those of the class batch. Used in the event loop."""

    def __init__(self) -> None:
        self._by_model: Counter[str] = Counter()

    def begin(self, model_name: str, priority: Priority) -> None:
        """Counts a submission that begins; each must be given to `end` once."""
        if priority > Priority.BATCH:
            self._by_model[model_name] += 1

    def end(self, model_name: str, priority: Priority) -> None:
        """Counts a submission that ended."""
        if priority > Priority.BATCH:
            self._by_model[model_name] -= 1

    def num(self, model_name: str) -> int:
        """Those of a model, by the registry's name."""
        return self._by_model[model_name]
