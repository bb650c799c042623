"""Puts a library with an in-flight loop of its own under the core's scheduler, as if it were stepped.

A sequence is a whole request. It starts in the engine when the scheduler first grants it, and a *step* is a wait until the
engine has made something (or something came in, `interrupt`); so admission, fair order, deadlines, cancellation and metrics
are the same code as for models that the core steps. What the engine may hold at once is bounded in units by ``reserve``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

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
from sixfold.core.errors import RequestError, StepFailed
from sixfold.core.messages import Cost, Request

_log = logging.getLogger(__name__)

_UNBOUNDED = 1 << 40
_WAIT_S = 0.5  # a step that nothing interrupts still ends, so that deadlines are kept


class EngineSequence:
    """A request inside the engine. The engine's thread adds to ``outputs``; the device thread owns the rest."""

    __slots__ = ("finish", "holds_room", "outputs", "request", "run", "units")

    def __init__(self, request: Request[Any], units: int) -> None:
        self.request = request
        self.units = units
        self.outputs: deque[msgspec.Struct | Finish[Any] | RequestError] = deque()
        self.holds_room = False
        self.run: Future[None] | None = None  # None until it has entered the engine
        self.finish: Finish[Any] | None = None


class EngineAdapter(StepModel[EngineSequence, Any, Any]):
    """A StepModel over an EngineModel.

    Args:
        engine: Runs on an event loop in a thread that the adapter owns.
        max_engine_units: Work in units that the engine may hold at once.
    """

    def __init__(self, engine: EngineModel[Any, Any], *, max_engine_units: int) -> None:
        self._engine = engine
        self._max_engine_units = max_engine_units
        self._held_units = 0
        self._lost: DeviceLost | None = None
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ModelInfo:
        """What the engine tells."""
        return self._engine.info

    @property
    def step_range(self) -> StepRange:
        """The engine has its own budget: the core's does not bind."""
        return StepRange(min_units=_UNBOUNDED, initial_units=_UNBOUNDED, max_units=_UNBOUNDED)

    def estimate_units(self, request: Request[Any]) -> int:
        """The engine's own guess."""
        return self._engine.estimate_units(request)

    def interrupt(self) -> None:
        """Ends the wait of a running step."""
        self._ready.set()

    def prepare(self, request: Request[Any], piece: object) -> Sequence[EngineSequence]:
        """The engine prepares for itself."""
        return (EngineSequence(request, self._engine.estimate_units(request)),)

    def cost(self, sequence: EngineSequence) -> Cost:
        """Its whole work when it enters, next to nothing while it is inside."""
        units = sequence.units if sequence.run is None else 1
        return Cost(units=units, min_units=units)

    def reserve(self, sequence: EngineSequence, units: int) -> int:
        """Room in the engine; one sequence always fits."""
        if not sequence.holds_room:
            if self._held_units > 0 and self._held_units + sequence.units > self._max_engine_units:
                return 0
            sequence.holds_room = True
            self._held_units += sequence.units
        return units

    def step(self, batch: Sequence[Granted[EngineSequence]]) -> Sequence[Outcome[Any]]:
        """Starts the new ones and waits until any has something.

        Raises:
            DeviceLost: The engine said so.
        """
        for granted in batch:
            sequence = granted.sequence
            if sequence.run is None:
                sequence.run = asyncio.run_coroutine_threadsafe(self._drive(sequence), self._loop)
        if not any(granted.sequence.outputs for granted in batch):
            self._ready.wait(_WAIT_S)
            # Only here, and before taking: what comes later, an output or an interrupt, ends the next wait at once.
            self._ready.clear()
        if self._lost is not None:
            raise self._lost
        return [self._take(granted.sequence) for granted in batch]

    async def _drive(self, sequence: EngineSequence) -> None:
        failure: RequestError = StepFailed("The engine ended the request without a result.")
        finished = False
        try:
            async for output in self._engine.generate(sequence.request):
                sequence.outputs.append(output)
                finished = finished or isinstance(output, Finish)
                self._ready.set()
        except RequestError as error:
            failure = error
        except DeviceLost as error:
            self._lost = error
        except Exception as error:  # the border between the core and an engine's code
            _log.exception("the engine failed on request %s", sequence.request.request_id)
            failure = StepFailed("The engine failed on this request. The server's log has the reason.")
            failure.__cause__ = error
        finally:  # also when the engine itself cancels; after a release nobody reads it
            if not finished:
                sequence.outputs.append(failure)
            self._ready.set()

    def _take(self, sequence: EngineSequence) -> Outcome[Any]:
        if not sequence.outputs:
            return Outcome()
        output = sequence.outputs.popleft()
        if isinstance(output, RequestError):
            return Outcome(done=True, error=output)
        if isinstance(output, Finish):
            sequence.finish = output
            return Outcome(done=True)
        return Outcome(output=output)

    def release(self, sequence: EngineSequence) -> None:
        """Aborts what still runs."""
        if sequence.holds_room:
            sequence.holds_room = False
            self._held_units -= sequence.units
        if sequence.run is not None:
            sequence.run.cancel()

    def finish(self, request: Request[Any], sequences: Sequence[EngineSequence]) -> Finish[Any]:
        """What the engine yielded last."""
        end = sequences[0].finish
        assert end is not None  # the sequence was done without an error
        return end

    def warm_up(self) -> None:
        """Warms the engine."""
        self._engine.warm_up()

    def stats(self) -> Mapping[str, float]:
        """The engine's own values."""
        return self._engine.stats()

    def close(self) -> None:
        """Waits until every abort has reached the engine, then closes it and its loop."""
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._engine.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
