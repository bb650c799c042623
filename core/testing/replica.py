"""The model under test: loaded in this process as a worker loads it, on a device thread of its own, behind a gate."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import sys
import threading
import time
from typing import Any

import msgspec

from sixfold.core.batching.budget import Objective
from sixfold.core.batching.engine_adapter import EngineAdapter
from sixfold.core.batching.manager import BatchManager, Limits, Snapshot
from sixfold.core.batching.model import ModelInfo, StepModel
from sixfold.core.messages import Event, Failed, Finished, Increment, Request
from sixfold.core.registry import ResolvedModel
from sixfold.core.runtime.devices import resolve_device, use_device
from sixfold.core.runtime.loading import load_model
from sixfold.core.runtime.replica import EventStream
from sixfold.core.runtime.replica_set import load_message
from sixfold.core.runtime.worker import ready_message
from sixfold.core.testing.gate import StepGate
from sixfold.core.tokenization.pool import ThreadPiecePool

_NUM_THREADS = 2


class GatedReplica:
    """A `Replica` whose steps a test can hold, and whose inputs and outputs are encoded as they are between processes.

    Made in the event loop that serves; `start` waits until the model is loaded.

    Args:
        resolved: What to load.
        gate: Put before its steps.
        max_queue_units: Bound of the queue; the family's own unless given.

    Attributes:
        border_errors: What could not be encoded, or was decoded as something else.
    """

    info: ModelInfo

    def __init__(self, resolved: ResolvedModel, gate: StepGate, *, max_queue_units: int | None = None) -> None:
        self._resolved = resolved
        self._gate = gate
        self._max_queue_units = max_queue_units
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, EventStream] = {}
        self._input = msgspec.msgpack.Decoder(resolved.family.input_type)
        self._output = msgspec.msgpack.Decoder(resolved.family.output_type)
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._serve, name="device", daemon=True)
        self._manager: BatchManager | None = None
        self._pool: ThreadPiecePool[tuple[Request[Any], object], Any] | None = None
        self.border_errors: list[str] = []

    async def start(self) -> None:
        """Loads the model; raises what its loader raised."""
        self._thread.start()
        await self._loaded

    def _serve(self) -> None:
        """Body of the device thread: loading, warming up and stepping, as in `sixfold.core.runtime.worker`."""
        try:
            model = self._load()
            self.info = ready_message(model).info
        except BaseException as error:  # whoever waits gets it
            self._loop.call_soon_threadsafe(self._loaded.set_exception, error)
            return
        assert self._manager is not None
        self._manager.run(on_running=self._tell_loaded)

    def _tell_loaded(self) -> None:
        self._loop.call_soon_threadsafe(self._loaded.set_result, None)

    def _load(self) -> StepModel[Any, Any, Any]:
        load = load_message(self._resolved, num_cpus=_NUM_THREADS)
        device = resolve_device(load.device)
        use_device(device)
        family = self._resolved.family
        model = load_model(family, load, lambda _fraction, _what: None)
        model.warm_up()
        self._gate.guard(model)

        def prepare(work: tuple[Request[Any], object]) -> Any:
            use_device(device)  # the thread is the pool's
            return model.prepare(*work)

        self._pool = ThreadPiecePool(prepare, num_workers=load.num_pool_threads, max_pending_pieces=65_536)
        limits = Limits(
            max_queue_units=self._max_queue_units or load.max_queue_units or family.default_max_queue_units,
            max_step_units=load.max_step_units,
        )
        if isinstance(model, EngineAdapter):
            limits = dataclasses.replace(limits, max_running_sequences=model.max_running_requests)
        if load.max_running_sequences is not None:
            limits = dataclasses.replace(limits, max_running_sequences=load.max_running_sequences)
        self._manager = BatchManager(
            model,
            pool=self._pool,
            limits=limits,
            objective=Objective(),
            emit=lambda events: self._loop.call_soon_threadsafe(self._deliver, events),
            clock=time.monotonic,
        )
        return model

    @property
    def snapshot(self) -> Snapshot:
        """The figures after the last step."""
        return Snapshot() if self._manager is None else self._manager.snapshot

    def submit(self, request: Request[Any]) -> EventStream:
        """See `Replica`."""
        assert self._manager is not None
        manager, request_id = self._manager, request.request_id
        request = dataclasses.replace(request, input=self._crossed(request.input, self._input, "input_type"))
        stream = EventStream(lambda: manager.cancel(request_id))
        self._streams[request_id] = stream  # before the first event; taken back where it is refused
        try:
            manager.submit(request)
        except BaseException:
            del self._streams[request_id]
            raise
        return stream

    def _deliver(self, events: tuple[Event, ...]) -> None:
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            if isinstance(event, Finished | Failed):
                del self._streams[event.request_id]
            if isinstance(event, Increment):
                event = msgspec.structs.replace(event, output=self._crossed(event.output, self._output, "output_type"))
            elif isinstance(event, Finished):
                event = dataclasses.replace(event, result=self._crossed(event.result, self._output, "output_type"))
            stream.push((event,))

    def _crossed(self, value: Any, decoder: msgspec.msgpack.Decoder[Any], declared: str) -> Any:
        try:
            there = decoder.decode(msgspec.msgpack.encode(value))
        except (msgspec.MsgspecError, TypeError) as error:
            self.border_errors.append(f"Family.{declared} does not take a {type(value).__name__}: {error}")
            return value
        if type(there) is not type(value):
            self.border_errors.append(
                f"Family.{declared} makes a {type(there).__name__} of a {type(value).__name__}: structs of a union need a tag"
            )
        return there

    async def close(self) -> None:
        """Fails what is left, gives the model back, and lets go of it: the next one needs the memory."""
        self._gate.open()
        if self._manager is not None:
            await asyncio.to_thread(self._manager.close)
        if self._pool is not None:
            await asyncio.to_thread(self._pool.close)
        self._gate.leave()
        self._manager = self._pool = None
        self._streams.clear()
        _free_memory()


def _free_memory() -> None:
    gc.collect()  # a model and its layers may refer to each other
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
