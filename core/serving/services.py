"""What modalities may use beside HTTP calls: a folder, a clock, and work at models that no client waits for."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sixfold.core.errors import NotReady, RequestCancelled, RequestError
from sixfold.core.memory.occupancy import wait_for_place
from sixfold.core.messages import Event, Finished, Priority
from sixfold.core.serving.access import ModelAccess
from sixfold.core.serving.api import ServedModel
from sixfold.core.serving.context import ServingContext
from sixfold.core.serving.data_folder import DataFolder
from sixfold.core.serving.keys import Principal
from sixfold.core.serving.model_lookup import find_hosted, named_model
from sixfold.core.serving.submission import Submission, final_event, first_events

_LOOK_EVERY_S = 0.25


class BackgroundSubmission:
    """`sixfold.core.serving.api.BackgroundRun`, counted by the drain until it was read to its end."""

    def __init__(self, context: ServingContext, principal: Principal, request_id: str, priority: Priority) -> None:
        self._drain = context.drain
        self._access = ModelAccess(context, principal, request_id, priority, on_idle=self._leave)
        self._submission: Submission | None = None

    def submit(self, model_name: str, operation: str, input: msgspec.Struct, timeout_s: float | None) -> None:
        """Hands the work to a replica. Called once, before anything else.

        Raises:
            RequestError: It is not taken.
        """
        if self._drain.begun:
            raise self._drain.refusal()
        try:
            model = self._access.loaded_model(model_name, operation)
            self._submission = self._access.submit_for(model, input, timeout_s)
        except RequestError as refusal:
            self._access.close(refusal)
            raise
        self._drain.enter(self)

    async def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        """Yields events in bulk; raises the RequestError of a Failed event, or the reason of a cancellation."""
        assert self._submission is not None
        async for events in await first_events(self._submission):
            yield events

    async def result(self) -> Finished[Any]:
        """See `sixfold.core.serving.api.BackgroundRun.result`."""
        assert self._submission is not None
        return await final_event(self._submission)

    def cancel(self) -> None:
        """See `sixfold.core.serving.api.BackgroundRun.cancel`."""
        self.abort(RequestCancelled("The work was cancelled."))

    def abort(self, reason: RequestError) -> None:
        """Ends it; who reads it gets ``reason``."""
        self._access.abort(reason)

    def _leave(self) -> None:
        self._drain.leave(self)
        self._access.close(RequestCancelled("The work is over."))


class ModalityServices:
    """`sixfold.core.serving.api.Services` of one modality.

    Args:
        context: The server's parts.
        folder: Of all modalities.
        modality: Whose services these are.
        clock: Unix seconds.
    """

    def __init__(
        self, context: ServingContext, folder: DataFolder, modality: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._context = context
        self._folder = folder
        self._modality = modality
        self.clock = clock

    @property
    def data_dir(self) -> Path:
        """See `sixfold.core.serving.api.Services.data_dir`."""
        return self._folder.of(self._modality)

    @property
    def store_id(self) -> str:
        """See `sixfold.core.serving.api.Services.store_id`."""
        return self._folder.store_id

    async def wait_ready(self, model_name: str, operation: str, *, tenant: str) -> ServedModel:
        """See `sixfold.core.serving.api.Services.wait_ready`."""
        principal = self._context.keys.holder(tenant)
        while True:
            try:
                hosted = find_hosted(self._context.directory, principal, model_name, operation)
                place = hosted.enter()
                if place is not None:
                    await wait_for_place(place, None, hosted.leave)
            except NotReady as state:
                if state.code == "model_failed" or self._context.drain.begun:
                    raise
            else:
                # Not before the caller has gone on: what it submits at once finds the model loaded.
                asyncio.get_running_loop().call_soon(hosted.leave)
                return named_model(hosted, model_name)
            await asyncio.sleep(_LOOK_EVERY_S)

    def background(
        self,
        model_name: str,
        operation: str,
        input: msgspec.Struct,
        *,
        tenant: str,
        priority: Priority | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> BackgroundSubmission:
        """See `sixfold.core.serving.api.Services.background`."""
        principal = self._context.keys.holder(tenant)
        allowed = principal.priority if priority is None else min(priority, principal.max_priority)
        run = BackgroundSubmission(self._context, principal, request_id or f"bg_{secrets.token_hex(12)}", allowed)
        run.submit(model_name, operation, input, timeout_s)
        return run
