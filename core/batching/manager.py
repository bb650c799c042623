"""The batch manager of one replica: admission in front, the pool beside, the step loop on its own device thread behind."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sixfold.core.batching.admission import Admission
from sixfold.core.batching.budget import Objective, StepBudget
from sixfold.core.batching.entry import RequestState
from sixfold.core.batching.in_progress import InProgress
from sixfold.core.batching.job_scheduler import JobScheduler
from sixfold.core.batching.model import DeviceLost, StepModel
from sixfold.core.batching.outbox import ManagerOutbox, PreparePool
from sixfold.core.batching.returned import log_cause, sequence_of, size_of
from sixfold.core.batching.scheduler import Scheduler
from sixfold.core.batching.step_loop import StepLoop
from sixfold.core.batching.step_watch import StepNews, StepWatch
from sixfold.core.decisions import Decision, DecisionLog
from sixfold.core.errors import InvalidRequest, NotReady, RequestError, WorkerDied
from sixfold.core.messages import Event, Request
from sixfold.core.tokenization.pieces import PieceDone

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one replica.

    Attributes:
        max_queue_units: Admitted work that is not done; beyond it new requests get QueueFull.
        max_queue_s: The same in seconds of work at the measured speed; None for no such bound.
        max_running_sequences: Sequences in the running batch.
        max_step_units: Upper bound of the step budget; None leaves it to the model.
        patience_s: Wait after which a sequence goes before the fair order.
    """

    max_queue_units: int = 1_000_000
    max_queue_s: float | None = None
    max_running_sequences: int = 256
    max_step_units: int | None = None
    patience_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Figures of a replica at one moment; see `ReplicaSnapshot` for the fields."""

    num_running: int = 0
    num_waiting: int = 0
    queued_units: int = 0
    units_per_s: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    decisions: tuple[Decision, ...] = ()


class BatchManager:
    """Runs one model for many requests.

    Args:
        model: What is stepped; from here on only the device thread touches it, but for what is marked [pool] and [loop].
        pool: Prepares pieces; owned by the caller.
        limits: Bounds.
        objective: What the step budget is moved for.
        emit: Gets all events, several at a time, from several threads; in order for each request. Must not block.
        clock: ``time.monotonic`` or a fake.
        in_progress: Told of each turn of the loop and of each result that is made, for whoever watches.
    """

    def __init__(
        self,
        model: StepModel[Any, Any, Any],
        *,
        pool: PreparePool,
        limits: Limits,
        objective: Objective,
        emit: Callable[[tuple[Event, ...]], object],
        clock: Callable[[], float],
        in_progress: InProgress | None = None,
    ) -> None:
        bounds = model.step_range
        if limits.max_step_units is not None:
            top = limits.max_step_units
            bounds = dataclasses.replace(
                bounds,
                min_units=min(bounds.min_units, top),
                initial_units=min(bounds.initial_units, top),
                max_units=min(bounds.max_units, top),
            )
        self._model = model
        self._pool = pool
        self._clock = clock
        self._admission = Admission(limits.max_queue_units, limits.max_queue_s, clock=clock)
        self._decisions = DecisionLog()
        model.tell(self._decisions)
        self._budget = StepBudget(bounds, objective, self._decisions)
        self._budget.learn(model.measured_steps())
        scheduler = JobScheduler if bounds.whole_jobs else Scheduler
        self._scheduler = scheduler(
            model, self._budget, max_running_sequences=limits.max_running_sequences, patience_s=limits.patience_s
        )
        self._in_progress = in_progress or InProgress()
        self._outbox = ManagerOutbox(model, pool, self._admission, emit, self._in_progress)
        self._loop = StepLoop(model, self._scheduler, self._budget, self._outbox, clock, before_step=self._publish_who)
        self._orders = itertools.count()
        self._wake = threading.Condition()
        self._end_lock = threading.Lock()
        self._draining = False
        self._closing = False
        self._ended = False
        self._lost = False
        self._thread: threading.Thread | None = None
        self._snapshot = Snapshot()
        model.attach(self._turn)
        self._publish()

    @property
    def snapshot(self) -> Snapshot:
        """The figures before the first step or after the last, but for who runs and waits: of this step. [any thread]"""
        return self._snapshot

    def start(self, on_lost: Callable[[], None] = lambda: None) -> None:
        """Starts a device thread.

        Args:
            on_lost: Called on the device thread after a lost device has ended all requests.
        """
        self._thread = threading.Thread(target=self.run, kwargs={"on_lost": on_lost}, name="device", daemon=True)
        self._thread.start()

    def run(self, *, on_running: Callable[[], None] = lambda: None, on_lost: Callable[[], None] = lambda: None) -> None:
        """Makes the calling thread the device thread, until `close`; for callers that load the model on it as well.

        Args:
            on_running: Called before the first turn; from then on `close` waits for this thread.
            on_lost: See `start`.
        """
        self._thread = threading.current_thread()
        on_running()
        try:
            while not self._closing:
                with self._in_progress.doing("a step"):
                    stepped = self._loop.run_once()
                    self._publish()
                if not stepped:
                    self._sleep()
        except BaseException as error:  # without its loop the replica would hang every client: fail all, be replaced
            reason = "the device is lost" if isinstance(error, DeviceLost) else "the step loop failed"
            _log.exception("%s; every request of this replica fails", reason)
            self._lost = True
        self._end(on_lost)

    def submit(self, request: Request[Any]) -> None:
        """Admits a request; its events come through ``emit``. [any thread; microseconds]

        Raises:
            QueueFull: At once; also if it would miss its deadline, or if the pool is full.
            NotReady: Draining or closed.
            WorkerDied: The device is lost.
            PayloadTooLarge: More pieces than the pool ever holds.
            InvalidRequest: The request id is in use, or the request holds nothing.
            StepFailed: The model's code failed.
        """
        if self._draining or self._closing:
            raise self._closing_error()
        units, pieces = size_of(self._model, request)
        if not pieces:
            raise InvalidRequest("The input is empty.", param="input")
        self._outbox.admit(request, units, self._clock())
        state = RequestState(request, units, next(self._orders))
        self._post(lambda loop: loop.open(state, len(pieces)))
        try:
            work = [(request, piece) for piece in pieces]
            self._pool.submit(request.request_id, work, lambda done: self._prepared(state, done))
        except RequestError:
            self._post(lambda loop: loop.withdraw(state))
            raise
        finally:
            if self._ended:
                self._fail_rest()

    def cancel(self, request_id: str) -> None:
        """Ends a request within one step; harmless when it has ended. [any thread]"""
        self._post(lambda loop: loop.cancel(request_id))

    def watch(self, on: bool) -> None:
        """From the next turn on remembers what steps do, for `take_news`, or stops doing so. [any thread]

        Begun once more, it tells of what runs for whoever has come.
        """

        def change(loop: StepLoop) -> None:
            if not on:
                loop.watch = None
            elif loop.watch is None:
                loop.watch = StepWatch()
            else:
                loop.watch.retell()

        self._post(change)

    def take_news(self) -> tuple[list[StepNews], int]:
        """What has happened since the last call, and how many news were lost; nothing unless watched. [one thread]"""
        watch = self._loop.watch
        return ([], 0) if watch is None else watch.take()

    def drain(self, timeout_s: float | None) -> bool:
        """Takes no new requests and waits for the running ones; False if some are left after the time. [any thread]"""
        self._draining = True
        return self._outbox.wait_idle(timeout_s)

    def close(self) -> None:
        """Fails what is left, sends all results, ends the device thread. [any thread but the device's]"""
        self._closing = True
        self._post(lambda _loop: None)
        if self._thread is not None:
            self._thread.join()
        elif not self._ended:
            self._end(lambda: None)
        self._outbox.close()

    def _closing_error(self) -> RequestError:
        if self._lost:
            return WorkerDied("The model's process is being replaced. Retry.", retry_after_s=1.0)
        return NotReady("The model is shutting down. Retry later.", retry_after_s=1.0)

    def _prepared(self, state: RequestState, done: PieceDone[Sequence[Any]]) -> None:
        try:
            sequences = sequence_of(self._model, "prepare", done.result)
        except RequestError as error:
            failure = error
            log_cause(failure, state.request.request_id, state.log_fields)
            self._post(lambda loop: loop.fail(state, failure))
        else:
            self._post(lambda loop: loop.add_prepared(state, sequences))

    def _post(self, command: Callable[[StepLoop], None]) -> None:
        with self._wake:
            self._loop.inbox.append(command)
            self._wake.notify()
        self._model.interrupt()

    def _turn(self) -> None:
        """Makes the loop turn: a sequence came back from elsewhere."""
        with self._wake:
            self._loop.inbox.append(lambda _loop: None)
            self._wake.notify()

    def _fail_rest(self) -> None:
        """Answers what is left once the loop has ended: it, or a thread that submitted while it ended.

        Must not be called by the pool's deliver, which ending a request waits for.
        """
        with self._end_lock:
            while self._loop.inbox:
                try:
                    self._loop.inbox.popleft()(self._loop)
                except Exception:  # of a model that is broken: the others must be answered
                    _log.exception("a command failed after the last step")
            self._loop.fail_all(self._closing_error())

    def _end(self, on_lost: Callable[[], None]) -> None:
        self._draining = True
        self._ended = True
        try:
            self._fail_rest()
        finally:
            if self._lost:
                on_lost()  # before anything of the model, which may hang now
        if not self._lost:
            self._publish()
        try:
            self._model.close()
        except Exception:
            _log.exception("the model could not be closed")

    def _sleep(self) -> None:
        """Waits until something comes in, or the next deadline."""
        with self._wake:
            if self._loop.inbox or self._closing:
                return
            deadline_s = self._loop.next_deadline_s
            wait_s = None if deadline_s is None else max(0.0, deadline_s - self._clock())
            if self._loop.has_work:
                # The turn only took memory away and the next will find room; soon rather than at once, so that a model
                # that never gives room cannot make this thread spin.
                wait_s = 0.01 if wait_s is None else min(wait_s, 0.01)
            self._wake.wait(wait_s)

    def _publish_who(self) -> None:
        """A step may take long, or hang: who looks meanwhile must see who is in it."""
        before, running, waiting = self._snapshot, self._loop.num_running, self._loop.num_waiting
        if (before.num_running, before.num_waiting) != (running, waiting):
            self._snapshot = dataclasses.replace(before, num_running=running, num_waiting=waiting)

    def _publish(self) -> None:
        loop = self._loop
        metrics = dict(self._model.stats())
        metrics["num_preemptions_total"] = self._scheduler.num_preemptions
        metrics["num_sequences_waiting"] = self._scheduler.queue.num_waiting
        metrics["steps_total"] = loop.counters["steps"]
        metrics["step_units_total"] = loop.counters["units"]
        metrics["step_seconds_total"] = loop.busy_s
        metrics["step_budget_units"] = self._budget.units
        metrics["decisions_total"] = self._decisions.num
        metrics["batch_sequences"] = loop.last_batch_sequences
        metrics["max_batch_sequences"] = loop.max_batch_sequences
        self._snapshot = Snapshot(
            num_running=loop.num_running,
            num_waiting=loop.num_waiting,
            queued_units=self._admission.queued_units,
            units_per_s=self._admission.units_per_s,
            metrics=metrics,
            decisions=self._decisions.recent,
        )
