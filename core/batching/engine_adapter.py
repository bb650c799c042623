"""Puts a library with an in-flight loop of its own under the core's scheduler, as if it were stepped.

A sequence is a whole request. Its first and only step starts it in the engine; from then on it works elsewhere, and what
it yields is collected between turns, all requests at once. So admission, fair order, deadlines, cancellation and metrics
are the same code as for models that the core steps, and a token costs an append here and a list item there: with 256
streams the engine's own loop shares the interpreter with this thread, and every microsecond a token is 2% of a GPU.
What the engine may hold at once is bounded by ``reserve``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from sixfold.core.batching.model import (
    DeviceLost,
    EngineModel,
    Finish,
    Granted,
    ModelInfo,
    Outcome,
    StepModel,
    StepRange,
)
from sixfold.core.batching.returned import finish_of, returned, units_of
from sixfold.core.decisions import DecisionLog
from sixfold.core.errors import RequestError, StepFailed
from sixfold.core.messages import Cost, Request

_log = logging.getLogger(__name__)

_UNBOUNDED = 1 << 40
_STARTED: Outcome[Any] = Outcome()


class EngineSequence:
    """A request inside the engine. Owner: the device thread, but for ``task`` and ``finish``: the engine's thread."""

    __slots__ = ("finish", "holds_room", "is_inside", "prepared", "request", "task", "units")

    def __init__(self, request: Request[Any], prepared: Any, units: int) -> None:
        self.request = request
        self.prepared = prepared
        self.units = units
        self.holds_room = False
        self.is_inside = False  # it has entered the engine
        self.task: asyncio.Task[None] | None = None
        self.finish: Finish[Any] | None = None


class EngineAdapter(StepModel[EngineSequence, Any, Any]):
    """A StepModel over an EngineModel.

    Args:
        engine: Runs on an event loop in a thread that the adapter owns.
        max_engine_units: Work in units that the engine may hold at once; None for the engine's own bound.

    Attributes:
        engine: The engine.
        max_running_requests: The engine's own bound.
    """

    def __init__(self, engine: EngineModel[Any, Any, Any], *, max_engine_units: int | None = None) -> None:
        self.engine = engine
        self._max_units = max_engine_units or engine.max_running_units
        self.max_running_requests = engine.max_running_requests
        self._held_units = 0
        self._num_held = 0
        self._lost: DeviceLost | None = None
        # Filled by the engine's thread, emptied by the device thread. The flag keeps all but the first output after a
        # `collect` from waking the device thread again: an append and a test instead of a lock and a notification.
        self._news: deque[tuple[EngineSequence, Outcome[Any]]] = deque()
        self._has_woken = False
        self._wake: Callable[[], None] = lambda: None
        self._loop = _new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ModelInfo:
        """What the engine tells."""
        return returned(self.engine, "info", self.engine.info, ModelInfo)

    @property
    def step_range(self) -> StepRange:
        """The engine has its own budget: the core's does not bind."""
        return StepRange(min_units=_UNBOUNDED, initial_units=_UNBOUNDED, max_units=_UNBOUNDED)

    def estimate_units(self, request: Request[Any]) -> int:
        """The engine's own guess."""
        return units_of(self.engine, "estimate_units", self.engine.estimate_units(request))

    def attach(self, wake: Callable[[], None]) -> None:
        """See `StepModel`."""
        self._wake = wake
        self.engine.attach(wake)

    def prepare(self, request: Request[Any], piece: object) -> Sequence[EngineSequence]:
        """What the engine makes of the request."""
        return (EngineSequence(request, self.engine.prepare(request), self.estimate_units(request)),)

    def cost(self, sequence: EngineSequence) -> Cost | None:
        """Its whole work when it enters; nothing while it is inside."""
        return None if sequence.is_inside else Cost(units=sequence.units, min_units=sequence.units)

    def reserve(self, sequence: EngineSequence, units: int) -> int:
        """Room in the engine; one sequence always fits."""
        if not sequence.holds_room:
            if self._num_held and (
                self._held_units + sequence.units > self._max_units or self._num_held >= self.max_running_requests
            ):
                return 0
            sequence.holds_room = True
            self._held_units += sequence.units
            self._num_held += 1
        return units

    def step(self, batch: Sequence[Granted[EngineSequence]]) -> Sequence[Outcome[Any]]:
        """Starts the sequences in the engine."""
        sequences = [granted.sequence for granted in batch]
        for sequence in sequences:
            sequence.is_inside = True
        # One call for all: each gives the interpreter away and waits until the engine's busy loop gives it back.
        self._loop.call_soon_threadsafe(self._start, sequences)
        return [_STARTED] * len(batch)

    def _start(self, sequences: Sequence[EngineSequence]) -> None:
        for sequence in sequences:
            sequence.task = self._loop.create_task(self._drive(sequence))

    def collect(self) -> Sequence[tuple[EngineSequence, Outcome[Any]]]:
        """What the engine has made since the last time.

        Raises:
            DeviceLost: The engine said so.
        """
        self._has_woken = False  # before the news are taken: what comes later wakes again
        if self._lost is not None:
            raise self._lost
        news = self._news
        return [news.popleft() for _ in range(len(news))]

    async def _drive(self, sequence: EngineSequence) -> None:
        failure: RequestError = StepFailed("The engine ended the request without a result.")

        def tell(output: Any) -> None:
            self._tell(sequence, Outcome(output))

        try:
            end = await self.engine.run(sequence.request, sequence.prepared, tell)
            sequence.finish = finish_of(self.engine, "run", end)
            self._tell(sequence, Outcome(done=True))
        except RequestError as error:
            failure = error
        except DeviceLost as error:
            self._lost = error
        except Exception as error:  # the border between the core and an engine's code
            _log.exception("the engine failed on request %s", sequence.request.request_id)
            failure = StepFailed("The engine failed on this request. The server's log has the reason.")
            failure.__cause__ = error
        finally:  # also when the engine itself cancels; after a release nobody reads it
            if sequence.finish is None:
                self._tell(sequence, Outcome(done=True, error=failure))

    def _tell(self, sequence: EngineSequence, outcome: Outcome[Any]) -> None:
        self._news.append((sequence, outcome))
        if not self._has_woken:
            self._has_woken = True
            self._wake()

    def release(self, sequence: EngineSequence) -> None:
        """Aborts what still runs."""
        if sequence.holds_room:
            sequence.holds_room = False
            self._held_units -= sequence.units
            self._num_held -= 1
        if sequence.is_inside and sequence.finish is None:
            self._loop.call_soon_threadsafe(self._abort, sequence)

    def _abort(self, sequence: EngineSequence) -> None:
        if sequence.task is not None:
            sequence.task.cancel()

    def finish(self, request: Request[Any], sequences: Sequence[EngineSequence]) -> Finish[Any]:
        """What the engine yielded last."""
        end = sequences[0].finish
        assert end is not None  # the sequence was done without an error
        return end

    def adjust(self, options: BaseModel) -> None:
        """The engine's own business."""
        self.engine.adjust(options)

    def warm_up(self) -> None:
        """Warms the engine."""
        self.engine.warm_up()

    def tell(self, decisions: DecisionLog) -> None:
        """The engine's own business."""
        self.engine.tell(decisions)

    def stats(self) -> Mapping[str, float]:
        """The engine's own values."""
        return self.engine.stats()

    def close(self) -> None:
        """Waits until every abort has reached the engine, then closes it and its loop."""
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self.engine.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # where a task wakes for each token it halves what that costs
    except ImportError:  # another environment need not have it
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
