"""What one client may do with models: find them, hand them requests, end these; shared by HTTP calls, sockets and jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

import msgspec

from sixfold.core.errors import DeadlineExceeded, NotReady, PermissionDenied, RequestError
from sixfold.core.memory.occupancy import wait_for_place
from sixfold.core.messages import Priority, Request
from sixfold.core.runtime.replica import Replica
from sixfold.core.serving.api import ServedModel
from sixfold.core.serving.context import ServingContext
from sixfold.core.serving.directory import HostedModel, OptionsChange
from sixfold.core.serving.keys import Principal
from sixfold.core.serving.model_lookup import NamedModel, find_hosted, named_model, not_ready, usable_models
from sixfold.core.serving.request_record import RequestRecord
from sixfold.core.serving.submission import Submission
from sixfold.core.serving.submission_record import SubmissionRecord

WORKER_GRACE_S = 2.0
"""The worker enforces deadlines; the HTTP face does it itself when the worker is this late."""


class ModelAccess:
    """The models as one client has them. Used in the event loop; owned by one call, socket or job.

    A model that was found stays loaded until `close`: what a client was told of it holds for what it then asks.

    Args:
        context: The server's parts.
        principal: The client.
        request_id: Begins the ids of its requests at the replicas.
        priority: Of its requests.
        on_idle: Called when none of its requests runs any more.
        record: Of the HTTP request that it is for, where that is traced or logged.
    """

    __slots__ = (
        "_aborted",
        "_context",
        "_held",
        "_on_idle",
        "_places",
        "_record",
        "_request_id",
        "_running",
        "principal",
        "priority",
    )

    def __init__(
        self,
        context: ServingContext,
        principal: Principal,
        request_id: str,
        priority: Priority,
        *,
        on_idle: Callable[[], None] = lambda: None,
        record: RequestRecord | None = None,
    ) -> None:
        self._record = record
        self._on_idle = on_idle
        self._context = context
        self.principal = principal
        self._request_id = request_id
        self.priority = priority
        self._running: dict[Submission, asyncio.TimerHandle | None] = {}
        self._aborted: RequestError | None = None
        self._held: list[HostedModel] = []
        self._places: set[asyncio.Future[None]] = set()

    async def model(
        self,
        name: str,
        operation: str,
        *,
        deadline_s: float | None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> NamedModel:
        """See `sixfold.core.serving.api.Call.model`.

        Args:
            name: Name or alias.
            operation: What it shall do.
            deadline_s: ``time.monotonic()`` until which it may take to load.
            on_wait: Called when it must be loaded first.
        """
        directory = self._context.directory
        self._check_open()
        try:
            hosted = find_hosted(directory, self.principal, name, operation)
            if self._record is not None:
                self._record.found(hosted.name, operation)
            if not self._holds(hosted):
                place = hosted.enter()
                if place is not None:
                    on_wait()
                    await self._wait(hosted, name, place, deadline_s)
                    if self._aborted is not None:  # at the same moment, after which nobody would let it go
                        hosted.leave()
                        raise self._aborted
                self._held.append(hosted)
            return named_model(hosted, name)
        except NotReady as rejection:
            found = directory.find(name)
            self._context.metrics.model(name if found is None else found.name).rejected(rejection)
            raise

    async def _wait(
        self, hosted: HostedModel, name: str, place: asyncio.Future[None], deadline_s: float | None
    ) -> None:
        """Waits until the model is loaded; the request is over when its client leaves or its deadline passes."""
        self._places.add(place)
        try:
            timeout_s = None if deadline_s is None else deadline_s - monotonic()
            await wait_for_place(place, timeout_s, hosted.leave)
        except TimeoutError:
            raise NotReady(
                f"The model {name!r} is still being loaded. Try again soon.", code="loading", retry_after_s=5.0
            ) from None
        finally:
            self._places.discard(place)

    def loaded_model(self, name: str, operation: str) -> NamedModel:
        """`model`, for work that does not wait.

        Raises:
            RequestError: As `model`; NotReady also where the model would have to be loaded.
        """
        hosted = find_hosted(self._context.directory, self.principal, name, operation)
        self._hold(hosted, name)
        return named_model(hosted, name)

    def _check_open(self) -> None:
        if self._aborted is not None:
            raise self._aborted

    def _holds(self, hosted: HostedModel) -> bool:
        return any(held is hosted for held in self._held)

    def _hold(self, hosted: HostedModel, name: str) -> None:
        if not self._holds(hosted):
            place = hosted.enter()
            if place is not None:
                place.cancel()
                raise not_ready(hosted, name)
            self._held.append(hosted)

    async def adjust(self, model: ServedModel, change: OptionsChange) -> None:
        """See `sixfold.core.serving.api.Call.adjust`."""
        assert isinstance(model, NamedModel), "models come from `model` or `models`"
        hosted = model.hosted
        if not self.principal.may_use(hosted.name):
            raise PermissionDenied(f"The key may not change the model {hosted.name!r}.", param="model")
        if not self.principal.changes_models:
            raise PermissionDenied(
                "The key may not change models. The operator allows it by the key's 'changes_models'."
            )
        await hosted.adjust(change)

    def models(self, operation: str) -> tuple[NamedModel, ...]:
        """See `sixfold.core.serving.api.Call.models`."""
        return usable_models(self._context.directory, self.principal, operation)

    def submit(
        self, model: ServedModel, input: msgspec.Struct, *, arrived_s: float, deadline_s: float | None
    ) -> Submission:
        """Hands a request to a replica, and ends it when it is due, also if its worker does not.

        Args:
            model: From `model` or `models`.
            input: Of its family's type.
            arrived_s: When its client's request arrived.
            deadline_s: ``time.monotonic()`` at which it is due, if it is not earlier by the model's own limit.

        Raises:
            RequestError: No replica takes it, or `abort` was called.
        """
        assert isinstance(model, NamedModel), "models come from `model` or `models`"
        self._check_open()
        hosted = model.hosted
        metrics = self._context.metrics.model(hosted.name)
        self._hold(hosted, model.name)
        now_s = monotonic()
        if (limit_s := hosted.request_timeout_s) is not None:
            deadline_s = now_s + limit_s if deadline_s is None else min(deadline_s, now_s + limit_s)
        request = Request(
            # Replicas tell requests apart by it; clients may send one id twice, and one call may submit several.
            request_id=f"{self._request_id}/{next(self._context.request_numbers)}",
            input=input,
            tenant=self.principal.name,
            weight=self.principal.weight,
            priority=self.priority,
            arrived_s=arrived_s,
            deadline_s=deadline_s,
            trace_id=None if self._record is None else self._record.trace_id,
        )
        try:
            replica, stream = self._context.chooser.submit(hosted.replicas, request, back_in_s=hosted.back_in_s)
        except RequestError as rejection:
            metrics.rejected(rejection)
            raise
        noted: SubmissionRecord | None = None
        if self._record is not None and hosted.family is not None:
            self._record.replica = _index(hosted.replicas, replica)
            noted = SubmissionRecord(self._record, hosted.family.trace_names, now_s)
        submission = Submission(stream, metrics, arrived_s, lambda ended: self._on_end(ended, replica, hosted), noted)
        self._context.urgent.begin(hosted.name, self.priority)
        timer: asyncio.TimerHandle | None = None
        if deadline_s is not None:
            left_s = deadline_s - now_s + WORKER_GRACE_S
            timer = asyncio.get_running_loop().call_later(left_s, submission.cancel, _overdue())
        self._running[submission] = timer
        return submission

    def submit_for(self, model: ServedModel, input: msgspec.Struct, timeout_s: float | None) -> Submission:
        """`submit` of a request that arrives now and is due after ``timeout_s``.

        Raises:
            RequestError: No replica takes it, or `abort` was called.
        """
        now_s = monotonic()
        deadline_s = None if timeout_s is None else now_s + timeout_s
        return self.submit(model, input, arrived_s=now_s, deadline_s=deadline_s)

    def abort(self, reason: RequestError) -> None:
        """Ends all that runs, and refuses what would follow; whoever reads is told ``reason``."""
        if self._aborted is None:
            self._aborted = reason
        for place in tuple(self._places):
            if not place.done():
                place.set_exception(reason)
        for submission in tuple(self._running):
            submission.cancel(reason)

    def close(self, reason: RequestError) -> None:
        """`abort`, and lets the models go. Called last."""
        self.abort(reason)
        held, self._held = self._held, []
        for hosted in held:
            hosted.leave()

    def _on_end(self, submission: Submission, replica: Replica, hosted: HostedModel) -> None:
        self._context.urgent.end(hosted.name, self.priority)
        self.principal.limiter.charge_tokens(_num_tokens(submission, hosted))
        self._context.chooser.done(replica)
        timer = self._running.pop(submission, None)
        if timer is not None:
            timer.cancel()
        if not self._running:
            self._on_idle()


def _overdue() -> RequestError:
    return DeadlineExceeded("The request's deadline passed before it was done.")


def _index(replicas: Sequence[Replica], replica: Replica) -> int:
    return next((index for index, each in enumerate(replicas) if each is replica), 0)


def _num_tokens(submission: Submission, hosted: HostedModel) -> int:
    """What a request counts for the limits of its key; one that did not finish as many as it was seen to bring."""
    if submission.usage is None:
        return submission.num_increments
    names = () if hosted.family is None else hosted.family.token_counts
    return sum(submission.usage.counts.get(name, 0) for name in names)
