"""A worker process: loads one model and runs its batch manager behind one socket to the serving process.

Started as ``python -m sixfold.core.runtime.worker FD LOG_FORMAT``. The main thread reads, a writer thread sends (many events a
frame), the device thread loads and steps, the pool has its own. When the socket closes, the serving process is gone and so
is this.

SIGUSR1 makes it print where each of its threads is, also while one of them holds the GIL. The serving process sends it to a
worker that hangs before it ends it; see `watchdog.py`.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from sixfold.core.batching.budget import Objective, ObjectiveKind
from sixfold.core.batching.engine_adapter import EngineAdapter
from sixfold.core.batching.in_progress import InProgress
from sixfold.core.batching.manager import BatchManager, Limits
from sixfold.core.batching.model import StepModel
from sixfold.core.batching.returned import check_loaded
from sixfold.core.errors import RequestError, SixfoldError, StepFailed, UsageError
from sixfold.core.messages import Failed, Priority, Request
from sixfold.core.plugins import load_plugins
from sixfold.core.runtime import wire
from sixfold.core.runtime.allocator import keep_freed_memory, use_one_arena
from sixfold.core.runtime.devices import device_bytes, resolve_device, use_device
from sixfold.core.runtime.loading import load_model, split_threads
from sixfold.core.runtime.watchdog import ALIVE_EVERY_S
from sixfold.core.runtime.worker_writer import Writer
from sixfold.core.telemetry.logs import add_log_fields, configure_logging
from sixfold.core.tokenization.pool import ThreadPiecePool

if TYPE_CHECKING:
    from sixfold.core.parallel.leader import Leader

_log = logging.getLogger(__name__)

_MAX_PENDING_PIECES = 65_536

# Python's default is 5 ms: as long as that may a thread wait for the interpreter while another one computes in Python. Who
# starts kernels needs it anew for each of them: beside one busy thread 2,200 small operations take 25 s instead of 25 ms, and
# 0.37 s with this. A decoder that the host bounds gives 8% more tokens at 16 streams and 12% more at 64 (two cores).
_SWITCH_INTERVAL_S = 1e-4


class Worker:
    """One model and its manager.

    Args:
        load: What to load.
        writer: Where events go.
        on_failed: Called on the device thread when the model could not be loaded and the reason was sent.
    """

    manager: BatchManager

    def __init__(self, load: wire.Load, writer: Writer, on_failed: Callable[[], None]) -> None:
        self._load = load
        self._writer = writer
        self._on_failed = on_failed
        self._sent: object = None
        self._last_decision = 0
        self._unusable: set[str] = set()  # metrics that are no numbers
        self.failed = False
        self.has_ended = False  # with all that the model has started
        self._leader: Leader | None = None
        self._in_progress = InProgress()

    def serve(self) -> None:
        """Loads, warms up and steps the model, all on the calling thread, which becomes the device thread.

        One thread for all of it: OpenMP keeps a team of threads for each thread that ever computed, counts the idle ones
        as well, and with more of them than cores lets none spin between kernels. A model loaded on another thread took
        51 ms a decode step instead of 30.
        """
        try:
            model = self._prepare()
            ready = ready_message(model)
        except Exception as error:  # a model's code may raise anything while it loads; the supervisor must hear it
            if not isinstance(error, SixfoldError):
                _log.exception("loading %s failed", self._load.model_name)
            message = str(error) if isinstance(error, SixfoldError) else f"{type(error).__name__}: {error}"
            if self._leader is not None:
                self._leader.close()
            self._writer.put(wire.LoadFailed(message, isinstance(error, UsageError)))
            self._writer.close()
            self.failed = True
            self._on_failed()
            return
        threading.Thread(target=self._say_alive, name="alive", daemon=True).start()
        self.manager.run(
            on_running=lambda: self._writer.put(
                msgspec.structs.replace(ready, device_bytes=device_bytes(self._device))
            ),
            # A lost device ends the process at once: the serving process sees the closed socket and replaces it.
            on_lost=lambda: threading.Thread(target=self._die, daemon=True).start(),
        )

    def _prepare(self) -> StepModel[Any, Any, Any]:
        load = self._load
        self._device = resolve_device(load.device)
        use_device(self._device)
        family = load_plugins().families.get(load.family)
        if family is None:
            raise UsageError(f"The worker's Python has no plugin with the family {load.family!r}. Install it there.")
        self._family = family
        self._input = msgspec.msgpack.Decoder(family.input_type)
        if load.ranks is not None:
            # Imported where there are ranks: it needs torch, which not every family brings.
            from sixfold.core.runtime.ranks import start_ranks

            load = split_threads(load)
            self._leader = start_ranks(load, on_lost=self._die)
        model = load_model(
            family,
            load,
            lambda fraction, what: self._writer.put(wire.LoadProgress(fraction, what)),
            parallel=self._leader,
        )
        self._model = model
        keep_freed_memory()
        model.warm_up()
        self._pool: ThreadPiecePool[tuple[Request[Any], object], Any] = ThreadPiecePool(
            self._prepare_piece,
            num_workers=load.num_pool_threads,
            max_pending_pieces=_MAX_PENDING_PIECES,
            name="prepare",
        )
        defaults = Limits(max_queue_units=family.default_max_queue_units)
        if isinstance(model, EngineAdapter):  # bounds what runs itself
            defaults = dataclasses.replace(defaults, max_running_sequences=model.max_running_requests)
        self.manager = BatchManager(
            model,
            pool=self._pool,
            limits=Limits(
                max_queue_units=load.max_queue_units or defaults.max_queue_units,
                max_queue_s=load.max_queue_s,
                max_running_sequences=load.max_running_sequences or defaults.max_running_sequences,
                max_step_units=load.max_step_units,
            ),
            objective=Objective(
                kind=ObjectiveKind(load.objective_kind), target_s=load.objective_target_s or float("inf")
            ),
            emit=self._writer.put,
            clock=time.monotonic,
            in_progress=self._in_progress,
        )
        self._writer.made_by = type(model.engine if isinstance(model, EngineAdapter) else model).__name__
        self._writer.give_up = self.manager.cancel
        self._writer.stats = self._stats_if_changed
        self._writer.news = self._news_if_any
        return model

    def _prepare_piece(self, work: tuple[Request[Any], object]) -> Any:
        use_device(self._device)  # the thread is the pool's
        with self._in_progress.doing("preparing a request"):
            return self._model.prepare(*work)

    def _say_alive(self) -> None:
        while True:
            time.sleep(ALIVE_EVERY_S)
            what, num_looks = self._in_progress.look()
            self._writer.put(wire.Alive(what, num_looks * ALIVE_EVERY_S))

    def _die(self) -> None:
        if self._leader is not None:
            self._leader.forget()
        self._writer.close()
        os._exit(70)

    def _stats_if_changed(self) -> wire.Stats | None:
        snapshot = self.manager.snapshot
        if snapshot is self._sent:
            return None
        self._sent = snapshot
        news = tuple(each for each in snapshot.decisions if each.number > self._last_decision)
        self._last_decision = news[-1].number if news else self._last_decision
        return wire.Stats(
            num_running=snapshot.num_running,
            num_waiting=snapshot.num_waiting,
            queued_units=snapshot.queued_units,
            units_per_s=snapshot.units_per_s,
            metrics=self._numbers(snapshot.metrics),
            decisions=news,
        )

    def _numbers(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Those of numpy and torch as Python's; what is no number is left out, and told once."""
        found: dict[str, float] = {}
        for name, value in metrics.items():
            try:
                found[name] = float(value)
            except (TypeError, ValueError, OverflowError):
                if name not in self._unusable:
                    self._unusable.add(name)
                    _log.error("%s.stats tells %s by a %s", self._writer.made_by, name, type(value).__name__)
        return found

    def _news_if_any(self) -> wire.Watched | None:
        news, num_dropped = self.manager.take_news()
        return wire.Watched(news, num_dropped) if news else None

    def submit(self, message: wire.Submit) -> None:
        """Admits a request of the serving process; a refusal is its answer."""
        request_id = _inner_id(message)
        self._writer.register(request_id, message.number)
        now_s = time.monotonic()
        timeouts_s = [t for t in (message.timeout_s, self._load.request_timeout_s) if t is not None]
        try:
            self.manager.submit(
                Request(
                    request_id=request_id,
                    input=self._input.decode(message.input),
                    tenant=message.tenant,
                    weight=message.weight,
                    priority=Priority(message.priority),
                    arrived_s=now_s,
                    deadline_s=now_s + min(timeouts_s) if timeouts_s else None,
                    trace_id=message.trace_id,
                )
            )
        except RequestError as error:
            self._writer.put((Failed(request_id=request_id, error=error),))
        except msgspec.ValidationError as error:
            failure = StepFailed(f"The input is not of {self._load.family}'s Family.input_type: {error}")
            _log.error("request %s failed: %s", message.request_id, failure)
            self._writer.put((Failed(request_id=request_id, error=failure),))

    def cancel(self, message: wire.Cancel) -> None:
        """Ends a request; harmless when it has ended."""
        self.manager.cancel(_inner_id(message))

    def adjust(self, message: wire.Adjust) -> None:
        """Lets the model take over new options, in a thread of its own; the serving process sends one after another."""
        threading.Thread(target=self._adjust, args=(message,), name="adjust", daemon=True).start()

    def _adjust(self, message: wire.Adjust) -> None:
        refusal: str | None = None
        try:
            use_device(self._device)
            self._model.adjust(self._family.options.model_validate(message.options))
        except SixfoldError as error:
            refusal = str(error)
        except Exception as error:  # a model's code may raise anything; the serving process must hear it
            _log.exception("%s did not take over new options", self._load.model_name)
            refusal = f"{type(error).__name__}: {error}"
        self._writer.put(wire.Adjusted(message.number, refusal))

    def drain(self, timeout_s: float) -> None:
        """Finishes what runs, answers the rest, sends all."""
        self.manager.drain(timeout_s)
        self.manager.close()
        self._pool.close()
        if self._leader is not None:
            self._leader.close()
        self.has_ended = True
        self._writer.put(wire.Drained())
        self._writer.close()


def ready_message(model: StepModel[Any, Any, Any]) -> wire.Ready:
    """What the serving process is told of a loaded model.

    Raises:
        UsageError: It tells what can't be sent.
    """
    info = check_loaded(model)
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(wire.Ready.of(info)), type=wire.Ready)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise UsageError(
            f"{type(model).__name__}.info returned a ModelInfo that can't be sent: {error}. Counts are ints, and details are"
            " JSON scalars by name."
        ) from error


def _inner_id(message: wire.Submit | wire.Cancel) -> str:
    """The client's own id may repeat: inside, the channel's number makes it unique."""
    return f"{message.request_id}#{message.number}"


def main(fd: int) -> int:
    """Serves one model until the serving process says Drain or goes away; the exit status."""
    # Ctrl-C, systemd and container runtimes signal the whole group: the serving process alone decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sock = socket.socket(fileno=fd)
    writer = Writer(sock)
    reader = wire.FrameReader()
    decoder = msgspec.msgpack.Decoder(wire.ToWorker)
    worker: Worker | None = None
    while data := _received(sock):
        for payload in reader.feed(data):
            message = decoder.decode(payload)
            if isinstance(message, wire.Load):
                add_log_fields(model=message.model_name, replica=message.replica)
                worker = Worker(message, writer, on_failed=lambda: sock.shutdown(socket.SHUT_RD))
                threading.Thread(target=worker.serve, name="device", daemon=True).start()
            elif worker is None:
                raise RuntimeError("the serving process sent work before Load")
            elif isinstance(message, wire.Submit):
                worker.submit(message)
            elif isinstance(message, wire.Cancel):
                worker.cancel(message)
            elif isinstance(message, wire.Adjust):
                worker.adjust(message)
            elif isinstance(message, wire.Watch):
                worker.manager.watch(message.on)
            else:
                # Beside the reader: clients may still cancel while the rest finishes.
                threading.Thread(target=_drain, args=(worker, message.timeout_s, sock), name="drain").start()
    if worker is None or not (worker.has_ended or worker.failed):
        # The serving process is gone, so nobody is left to end the processes of an engine: they go with this one.
        os.killpg(0, signal.SIGKILL)
    return int(worker is not None and worker.failed)


def _received(sock: socket.socket) -> bytes:
    """What came next; nothing when the serving process is gone, also when it has left unread what was sent to it."""
    try:
        return sock.recv(1 << 18)
    except ConnectionResetError:
        return b""


def _drain(worker: Worker, timeout_s: float, sock: socket.socket) -> None:
    worker.drain(timeout_s)
    sock.shutdown(socket.SHUT_RD)  # ends the reader in `main`


if __name__ == "__main__":
    configure_logging("info", "json" if sys.argv[2] == "json" else "text", pid=os.getpid())
    faulthandler.register(signal.SIGUSR1)
    os.setpgid(0, 0)  # with the processes of an engine, which must not outlive this one: see `WorkerReplica`
    use_one_arena()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    status = main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads inside model libraries may never end, and nothing is left to lose.
    os._exit(status)
