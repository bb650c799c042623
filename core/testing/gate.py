"""A gate before the steps of a model: tests hold it, so that what they do happens while a step is about to begin.

So nothing here waits for a lucky moment: a client leaves, or a queue fills, while the model stands still.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

from sixfold.core.batching.model import StepModel

PATIENCE_S = 60.0
"""For anything that must happen; only what has gone wrong takes as long."""

_GUARDED = ("step", "begin", "prepare")


class StepGate:
    """Stands before ``step`` and ``begin`` of one model, and counts what it sees. Open until `hold`.

    Attributes:
        num_steps: Steps that went through.
        num_prepared: Pieces that were prepared.
        largest_step: Sequences in the largest step since `forget`.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._may_pass: int | None = None  # steps until the gate holds; None while it is open
        self._is_holding = False
        self._guarded: Any = None  # the model, whose methods are replaced while it is guarded
        self._own: dict[str, Any] = {}
        self.num_steps = 0
        self.num_prepared = 0
        self.largest_step = 0

    def guard(self, model: StepModel[Any, Any, Any]) -> None:
        """Puts the gate before a model that has not begun to step."""
        guarded: Any = model
        self._guarded = guarded
        self._own = {name: guarded.__dict__[name] for name in _GUARDED if name in guarded.__dict__}
        guarded.step = self._before(guarded.step)
        guarded.begin = self._before(guarded.begin)
        guarded.prepare = self._counted(guarded.prepare)

    def leave(self) -> None:
        """Takes the gate away from before its model, which has ended: what holds its methods would keep it in memory."""
        if self._guarded is not None:
            for name in _GUARDED:
                delattr(self._guarded, name)
            self._guarded.__dict__.update(self._own)
        self._guarded, self._own = None, {}

    def hold(self, *, after: int = 0) -> None:
        """Lets so many further steps pass, and holds the next."""
        with self._changed:
            self._may_pass = after

    def open(self) -> None:
        """Lets everything pass."""
        with self._changed:
            self._may_pass = None
            self._changed.notify_all()

    def forget(self) -> None:
        """Begins to count anew."""
        with self._changed:
            self.num_steps = self.num_prepared = self.largest_step = 0

    def wait_holding(self, timeout_s: float) -> bool:
        """Waits until a step stands before the gate; False if none comes."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_holding, timeout_s)

    def wait_prepared(self, num_pieces: int, timeout_s: float) -> bool:
        """Waits until so many pieces are prepared; False if they are not."""
        with self._changed:
            return self._changed.wait_for(lambda: self.num_prepared >= num_pieces, timeout_s)

    def _before(self, step: Any) -> Any:
        @functools.wraps(step)
        def held(batch: Sequence[Any]) -> Any:
            with self._changed:
                if self._may_pass == 0:
                    self._is_holding = True
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._may_pass != 0)
                    self._is_holding = False
                if self._may_pass is not None:
                    self._may_pass -= 1
                self.num_steps += 1
                self.largest_step = max(self.largest_step, len(batch))
            return step(batch)

        return held

    def _counted(self, prepare: Any) -> Any:
        @functools.wraps(prepare)
        def counted(*args: Any) -> Any:
            try:
                return prepare(*args)
            finally:
                with self._changed:
                    self.num_prepared += 1
                    self._changed.notify_all()

        return counted
