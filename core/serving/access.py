"""What one client may do with models: find them, hand them requests, end these; shared by HTTP calls, sockets and jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import msgspec

from sixfold.core.errors import DeadlineExceeded, NotReady, PermissionDenied, RequestError
from sixfold.core.messages import Priority, Request
from sixfold.core.runtime.replica import Replica
from sixfold.core.serving.api import ServedModel
from sixfold.core.serving.context import ServingContext
from sixfold.core.serving.directory import OptionsChange
from sixfold.core.serving.keys import Principal
from sixfold.core.serving.model_lookup import NamedModel, find_model, usable_models
from sixfold.core.serving.submission import Submission

WORKER_GRACE_S = 2.0
"""The worker enforces deadlines; the HTTP face does it itself when the worker is this late."""


class ModelAccess:
    """The models as one client has them. Used in the event loop; owned by one call, socket or job.

    Args:
        context: The server's parts.
        principal: The client.
        request_id: Begins the ids of its requests at the replicas.
        priority: Of its requests.
        on_idle: Called when none of its requests runs any more.
    """

    __slots__ = ("_aborted", "_context", "_on_idle", "_priority", "_request_id", "_running", "principal")

    def __init__(
        self,
        context: ServingContext,
        principal: Principal,
        request_id: str,
        priority: Priority,
        *,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_idle = on_idle
        self._context = context
        self.principal = principal
        self._request_id = request_id
        self._priority = priority
        self._running: dict[Submission, asyncio.TimerHandle | None] = {}
        self._aborted: RequestError | None = None

    def model(self, name: str, operation: str) -> NamedModel:
        """See `sixfold.core.serving.api.Call.model`."""
        directory = self._context.directory
        try:
            return find_model(directory, self.principal, name, operation)
        except NotReady as rejection:
            hosted = directory.find(name)
            assert hosted is not None, "only a model that exists can be not ready"
            self._context.metrics.model(hosted.name).rejected(rejection)
            raise

    async def adjust(self, model: ServedModel, change: OptionsChange) -> None:
        """See `sixfold.core.serving.api.Call.adjust`."""
        assert isinstance(model, NamedModel), "models come from `model` or `models`"
        hosted = model.hosted
        if not self.principal.may_use(hosted.name):
            raise PermissionDenied(f"The key may not change the model {hosted.name!r}.", param="model")
        await hosted.adjust(change)

    def models(self, operation: str) -> tuple[NamedModel, ...]:
        """See `sixfold.core.serving.api.Call.models`."""
        return usable_models(self._context.directory, self.principal, operation)

    def submit(
        self, model: ServedModel, input: msgspec.Struct, *, arrived_s: float, deadline_s: float | None
    ) -> Submission:
        """Hands a request to a replica.

        Raises:
            RequestError: No replica takes it, or `abort` was called.
        """
        assert isinstance(model, NamedModel), "models come from `model` or `models`"
        if self._aborted is not None:
            raise self._aborted
        hosted = model.hosted
        metrics = self._context.metrics.model(hosted.name)
        request = Request(
            # Replicas tell requests apart by it; clients may send one id twice, and one call may submit several.
            request_id=f"{self._request_id}/{next(self._context.request_numbers)}",
            input=input,
            tenant=self.principal.name,
            weight=self.principal.weight,
            priority=self._priority,
            arrived_s=arrived_s,
            deadline_s=deadline_s,
        )
        try:
            replica, stream = self._context.chooser.submit(hosted.replicas, request)
        except RequestError as rejection:
            metrics.rejected(rejection)
            raise
        submission = Submission(stream, metrics, arrived_s, lambda ended: self._on_end(ended, replica))
        self._running[submission] = None
        return submission

    def submit_for(self, model: ServedModel, input: msgspec.Struct, timeout_s: float | None) -> Submission:
        """Hands a request that arrives now to a replica and ends it after ``timeout_s``, also if its worker does not.

        Raises:
            RequestError: No replica takes it, or `abort` was called.
        """
        now_s = monotonic()
        if timeout_s is None:
            return self.submit(model, input, arrived_s=now_s, deadline_s=None)
        submission = self.submit(model, input, arrived_s=now_s, deadline_s=now_s + timeout_s)
        overdue = DeadlineExceeded("The request's deadline passed before it was done.")
        loop = asyncio.get_running_loop()
        self._running[submission] = loop.call_later(timeout_s + WORKER_GRACE_S, submission.cancel, overdue)
        return submission

    def abort(self, reason: RequestError) -> None:
        """Ends all that runs, and refuses what would follow; whoever reads is told ``reason``."""
        if self._aborted is None:
            self._aborted = reason
        for submission in tuple(self._running):
            submission.cancel(reason)

    def _on_end(self, submission: Submission, replica: Replica) -> None:
        self._context.chooser.done(replica)
        timer = self._running.pop(submission, None)
        if timer is not None:
            timer.cancel()
        if not self._running:
            self._on_idle()
