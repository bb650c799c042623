"""A batch manager with its real thread and pool, and a recorder of what it says."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from sixfold.core.batching.budget import Objective
from sixfold.core.batching.manager import BatchManager, Limits
from sixfold.core.batching.model import Granted, Outcome
from sixfold.core.messages import Event, Failed, Finished, Request
from sixfold.core.tokenization.pool import ThreadPiecePool
from tests.fakes import FakeInput, FakeOutput, FakeSequence, FakeStepModel

WAIT_S = 20.0  # only ever reached by a failing test


class Recorder:
    """Gets the events of a manager and lets a test wait for them."""

    def __init__(self) -> None:
        self.events: dict[str, list[Event]] = defaultdict(list)
        self._changed = threading.Condition()

    def __call__(self, events: tuple[Event, ...]) -> None:
        with self._changed:
            for event in events:
                self.events[event.request_id].append(event)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), "nothing came"

    def last(self, request_id: str) -> Event:
        """Waits for the request's last event."""
        self.wait_for(lambda: any(isinstance(event, Finished | Failed) for event in self.events[request_id]))
        return self.events[request_id][-1]

    def error(self, request_id: str) -> Exception:
        last = self.last(request_id)
        assert isinstance(last, Failed)
        return last.error

    def assert_one_last_event(self, request_id: str) -> None:
        ends = [isinstance(event, Finished | Failed) for event in self.events[request_id]]
        assert ends.count(True) == 1
        assert ends[-1]


class GatedModel(FakeStepModel):
    """Waits in each step until the gate is open; tells when it is there."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gate = threading.Event()
        self.in_step = threading.Event()

    def step(self, batch: Sequence[Granted[FakeSequence]]) -> Sequence[Outcome[FakeOutput]]:
        self.in_step.set()
        assert self.gate.wait(WAIT_S)
        return super().step(batch)


class Rig:
    """A manager over a model, a pool of two threads and a recorder."""

    def __init__(self, model: FakeStepModel, *, max_pending_pieces: int = 1000, **limits: Any) -> None:
        self.model = model
        self.events = Recorder()
        self.pool: ThreadPiecePool[tuple[Request[Any], object], Sequence[Any]] = ThreadPiecePool(
            lambda work: model.prepare(*work), num_workers=2, max_pending_pieces=max_pending_pieces
        )
        self.manager = BatchManager(
            model,
            pool=self.pool,
            limits=Limits(**limits),
            objective=Objective(),
            emit=self.events,
            clock=model.clock,
        )

    def submit(self, request_id: str, input: FakeInput, **fields: Any) -> None:
        self.manager.submit(Request(request_id=request_id, input=input, arrived_s=self.model.clock(), **fields))

    def close(self) -> None:
        self.manager.close()
        self.pool.close()
