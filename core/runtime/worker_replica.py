"""A replica in a worker process, as the serving process sees it: starts it, talks to it, notices its end at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from pydantic import BaseModel

from sixfold.core.batching.manager import Snapshot
from sixfold.core.batching.model import ModelInfo
from sixfold.core.decisions import DecisionLog
from sixfold.core.errors import ConfigError, NotReady, QueueFull, RequestError, SixfoldError, StepFailed, WorkerDied
from sixfold.core.family import Family
from sixfold.core.messages import Event, Failed, Increment, Priority, Request
from sixfold.core.runtime import wire
from sixfold.core.runtime.door import Door
from sixfold.core.runtime.event_reader import EventReader
from sixfold.core.runtime.interpreter import Interpreter
from sixfold.core.runtime.large_bytes import encode_pieces
from sixfold.core.runtime.process_end import is_ending
from sixfold.core.runtime.replica import BatchNews, EventStream
from sixfold.core.runtime.watchdog import LOOK_EVERY_S, Watchdog
from sixfold.core.runtime.worker_process import end_hanging, python_of, start_process

_log = logging.getLogger(__name__)


class LoadError(SixfoldError):
    """The worker could not load the model, for a reason that may pass (memory, a crash)."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request at the worker; the door wants to know whose it was if it is refused."""

    request_id: str
    stream: EventStream
    tenant: str
    priority: Priority
    timeout_s: float | None
    num_bytes: int


class WorkerReplica(asyncio.Protocol):
    """See the module. Everything happens in the event loop that called `start`.

    Args:
        family: Of the model.
        load: What the worker shall load.
        interpreter: The Python to run; None for this process's own.
        on_progress: Called with (fraction, what) while the model loads.
        back_in_s: Asked, once this worker has ended, when there will be one again that its clients may try.
    """

    def __init__(
        self,
        family: Family,
        load: wire.Load,
        *,
        interpreter: Interpreter | None = None,
        on_progress: Callable[[float, str], None] = lambda _fraction, _what: None,
        back_in_s: Callable[[WorkerReplica], float] = lambda _gone: 1.0,
    ) -> None:
        self._back_in_s = back_in_s
        self._load = load
        self._interpreter = interpreter
        self._on_progress = on_progress
        self.ended = asyncio.Event()  # set once the process has ended, however it ended
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(wire.FromWorker)
        self._events = EventReader(family)
        self._frames = wire.FrameReader()
        self._sent: dict[int, _Sent] = {}
        self._door = Door(time.monotonic)
        self._watchdog = Watchdog(load.watchdog_timeout_s)
        self._adjusting: dict[int, asyncio.Future[str | None]] = {}
        self._listeners: dict[object, Callable[[BatchNews], None]] = {}
        self._next_number = 0
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[ModelInfo] | None = None
        self._info: ModelInfo | None = None
        self.device_bytes: int | None = None  # what the loaded model was seen to hold of a GPU
        self._draining = False
        self._snapshot = Snapshot()
        self._decisions = DecisionLog()

    @property
    def info(self) -> ModelInfo:
        """What the loaded model tells about itself."""
        if self._info is None:
            raise NotReady("The model is loading. Retry later.", retry_after_s=1.0)
        return self._info

    @property
    def snapshot(self) -> Snapshot:
        """The worker's figures, at most 100 ms old while it works."""
        return self._snapshot

    @property
    def num_in_flight(self) -> int:
        """Requests that were submitted here and have not ended; exact, unlike the snapshot."""
        return len(self._sent)

    @property
    def pid(self) -> int | None:
        """The worker's process id while it lives."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> ModelInfo:
        """Starts the process and waits until its model is loaded and warm.

        Raises:
            ConfigError: The model can't be loaded as it is configured.
            LoadError: Loading failed, or the process ended.
        """
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise LoadError(f"models.{self._load.model_name}: no channel to a worker can be opened: {error}") from error
        try:
            self._process = await start_process(self._load, theirs.fileno(), self._interpreter)
        except OSError as error:
            ours.close()
            python = python_of(self._interpreter)
            raise LoadError(f"models.{self._load.model_name}: {python} can't be run: {error}") from error
        finally:
            theirs.close()
        await loop.create_unix_connection(lambda: self, sock=ours)
        self._watcher = asyncio.create_task(self._watch())
        _log.info("the worker of %s is process %d", self._load.model_name, self._process.pid)
        self._send(self._load)
        return await self._ready

    async def _watch(self) -> None:
        assert self._process is not None
        status = await self._end(self._process)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(
                self._process.pid, signal.SIGKILL
            )  # what an engine of it has left behind, and the memory it holds
        if status != 0:
            _log.error("the worker of %s ended with status %d", self._load.model_name, status)
        if self._transport is not None:
            self._transport.abort()
        self._fail_streams()
        if self._ready is not None and not self._ready.done():
            hint = ": the system killed it, most likely for want of memory" if status == -signal.SIGKILL else ""
            self._ready.set_exception(
                LoadError(f"the worker of {self._load.model_name} ended with status {status}{hint}")
            )
        self.ended.set()

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        """Waits for the process; one that is seen to die or hangs loses its requests at once, however long its end takes."""
        waiting = asyncio.create_task(process.wait())
        was_ending = False
        try:
            while not (await asyncio.wait((waiting,), timeout=LOOK_EVERY_S))[0]:
                if self._draining or self._transport is None or self._info is None:
                    self._watchdog.heard()
                    continue
                if (reason := self._watchdog.look()) is not None:
                    _log.error("the worker of %s hangs, %s; it says where:", self._load.model_name, reason)
                    await end_hanging(process, waiting)
                    break
                if not is_ending(process.pid):
                    continue
                if was_ending:
                    _log.error("the worker of %s is ending", self._load.model_name)
                    self._transport.abort()
                    process.kill()  # without its first thread, which reads, the rest of it is of no use
                    break
                was_ending = True  # its last words are read before the next look
            return await waiting
        finally:
            waiting.cancel()

    def submit(self, request: Request[Any]) -> EventStream:
        """Hands a request to the worker; a refusal (a full queue) is the stream's first event.

        Raises:
            QueueFull: The worker has just refused such requests, many of them.
            NotReady: Draining.
            WorkerDied: The process has ended.
        """
        if self._draining:
            raise NotReady("The model is shutting down. Retry later.", retry_after_s=1.0)
        if self._transport is None or self._transport.is_closing() or self._info is None:
            raise WorkerDied("The model's process is being replaced. Retry.", retry_after_s=self._back_in_s(self))
        timeout_s = None if request.deadline_s is None else request.deadline_s - time.monotonic()
        number = self._next_number
        message = encode_pieces(
            self._encoder,
            wire.SubmitStruct(
                number=number,
                request_id=request.request_id,
                tenant=request.tenant,
                weight=request.weight,
                priority=int(request.priority),
                timeout_s=timeout_s,
                input=request.input,
                trace_id=request.trace_id,
            ),
        )
        num_bytes = sum(map(len, message))
        self._door.pass_or_refuse(request.tenant, request.priority, timeout_s, num_bytes)
        self._next_number += 1
        stream = EventStream(lambda: self._cancel(number))
        self._sent[number] = _Sent(request.request_id, stream, request.tenant, request.priority, timeout_s, num_bytes)
        self._write(message)
        return stream

    def _cancel(self, number: int) -> None:
        self._send(wire.Cancel(number, self._sent.pop(number).request_id))

    async def adjust(self, options: BaseModel) -> None:
        """Lets the loaded model take over new options; returns when it has.

        Raises:
            ConfigError: It can't, and is as before; says why.
            WorkerDied: The process has ended.
        """
        if self._transport is None or self._transport.is_closing() or self._info is None:
            raise WorkerDied("The model's process is being replaced. Retry.", retry_after_s=1.0)
        number = self._next_number
        self._next_number += 1
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._adjusting[number] = answer
        self._send(wire.Adjust(number, options.model_dump(mode="json")))
        try:
            refusal = await answer
        finally:
            del self._adjusting[number]
        if refusal is not None:
            raise ConfigError(refusal)

    def watch(self, listener: Callable[[BatchNews], None]) -> Callable[[], None]:
        """See `WatchedReplica.watch`."""
        key = object()
        self._listeners[key] = listener
        # For everyone anew: who comes later is told of the sequences that run already.
        self._send(wire.Watch(True))

        def stop() -> None:
            if self._listeners.pop(key, None) is not None and not self._listeners:
                self._send(wire.Watch(False))

        return stop

    async def stop(self, timeout_s: float) -> None:
        """Finishes what runs within the time, ends the process; kills it when it does not end."""
        process = self._process
        if process is None or self._watcher is None:
            return
        if not self._draining:
            self._draining = True
            self._send(wire.Drain(timeout_s))
        try:
            await asyncio.wait_for(asyncio.shield(self._watcher), timeout_s + 10.0)
        except TimeoutError:
            process.kill()
            await self._watcher

    def kill(self) -> None:
        """Ends the process at once; its requests fail with WorkerDied."""
        if self.pid is not None and self._process is not None:
            self._process.kill()

    def _send(self, message: wire.ToWorker) -> None:
        self._write(encode_pieces(self._encoder, message))

    def _write(self, message: Sequence[bytes]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            head = sum(map(len, message)).to_bytes(4, "big")
            self._transport.write(head + message[0])
            for piece in message[1:]:
                self._transport.write(piece)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The channel is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def connection_lost(self, exc: Exception | None) -> None:
        """The worker closed the channel or died: nothing more will come."""
        self._fail_streams()

    def data_received(self, data: bytes) -> None:
        """Messages of the worker."""
        self._watchdog.heard()
        for payload in self._frames.feed(data):
            self._receive(self._decoder.decode(payload))

    def _receive(self, message: wire.FromWorker) -> None:
        if isinstance(message, wire.Outputs):
            self._deliver(message.events)
        elif isinstance(message, wire.Stats):
            self._decisions.take(message.decisions)
            self._snapshot = Snapshot(
                num_running=message.num_running,
                num_waiting=message.num_waiting,
                queued_units=message.queued_units,
                units_per_s=message.units_per_s,
                metrics=message.metrics,
                decisions=self._decisions.recent,
            )
        elif isinstance(message, wire.Watched):
            news = BatchNews(news=message.news, num_dropped=message.num_dropped)
            for listener in tuple(self._listeners.values()):
                listener(news)
        elif isinstance(message, wire.Adjusted):
            answer = self._adjusting.get(message.number)
            if answer is not None and not answer.done():
                answer.set_result(message.refusal)
        elif isinstance(message, wire.Alive):
            self._watchdog.told(message.what, message.seconds)
        elif isinstance(message, wire.LoadProgress):
            self._on_progress(message.fraction, message.what)
        elif isinstance(message, wire.Ready):
            self._info = message.info
            self.device_bytes = message.device_bytes
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(self._info)
        elif isinstance(message, wire.LoadFailed) and self._ready is not None and not self._ready.done():
            error = ConfigError if message.usage_error else LoadError
            self._ready.set_exception(error(f"models.{self._load.model_name}: {message.message}"))

    def _deliver(self, wire_events: list[wire.WireEvent]) -> None:
        by_number: dict[int, list[Event]] = {}
        for wire_event in wire_events:
            sent = self._sent.get(wire_event.number)
            if sent is None:  # the client left
                continue
            try:
                event = self._events.read(sent.request_id, wire_event)
            except StepFailed as failure:  # it ends this request alone, after what came before it
                _log.error("request %s failed: %s", sent.request_id.partition("/")[0], failure)
                self._cancel(wire_event.number)
                before = by_number.pop(wire_event.number, [])
                sent.stream.push((*before, Failed(request_id=sent.request_id, error=failure)))
            else:
                by_number.setdefault(wire_event.number, []).append(event)
        for number, events in by_number.items():
            sent, last = self._sent[number], events[-1]
            if not isinstance(last, Increment):
                del self._sent[number]
                if isinstance(last, Failed) and isinstance(last.error, QueueFull):
                    self._door.refused(sent.tenant, sent.priority, sent.timeout_s, sent.num_bytes, last.error)
            sent.stream.push(tuple(events))

    def _fail_streams(self) -> None:
        all_sent, self._sent = self._sent, {}
        error: RequestError = (
            NotReady("The model was shut down before the request was done. Retry.", retry_after_s=1.0)
            if self._draining
            else WorkerDied(
                "The model's process ended before the request was done. Retry.", retry_after_s=self._back_in_s(self)
            )
        )
        for sent in all_sent.values():
            sent.stream.push((Failed(request_id=sent.request_id, error=error),))
        for answer in self._adjusting.values():
            if not answer.done():
                answer.set_exception(error)
