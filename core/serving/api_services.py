"""What outlives a plugin's clients: `Services` of a modality, and the `BackgroundRun` of what no client waits for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from sixfold.core.messages import Event, Finished, Priority
from sixfold.core.serving.api_calls import ServedModel


class BackgroundRun(Protocol):
    """A submission that no client waits for. Read it to its end by iteration or `result`, or cancel it."""

    def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        """Yields events in bulk; raises the RequestError of a Failed event, or the reason of a cancellation."""
        ...

    async def result(self) -> Finished[Any]:
        """Waits for the end; increments are dropped.

        Raises:
            RequestError: What it ended with; NotReady with the code ``draining`` when the server goes down.
        """
        ...

    def cancel(self) -> None:
        """Ends it within one step; who reads it gets RequestCancelled. Harmless after its end."""
        ...


class Services(Protocol):
    """What a modality may use beside HTTP calls, from `ModalityAPI.startup` until `ModalityAPI.shutdown`."""

    @property
    def data_dir(self) -> Path:
        """A folder of this modality's own, which exists; below ``server.data_dir``, so it may outlive the server.

        Raises:
            UsageError: It cannot be made, or another server uses it.
        """
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """Unix seconds, as stored times are compared with."""
        ...

    async def wait_ready(self, model_name: str, operation: str, *, tenant: str) -> ServedModel:
        """Waits while the model is loading, for work that is continued after a restart; loads it if need be.

        It is in memory then, and stays for what is submitted without waiting for anything else.

        Raises:
            RequestError: It can't be waited for: no such model, not this tenant's, or it failed to load.
        """
        ...

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
    ) -> BackgroundRun:
        """Submits work that no HTTP call waits for. The drain waits for it, then cancels it.

        Args:
            model_name: Name or alias.
            operation: What the model shall do.
            input: The plugin's input struct.
            tenant: `Caller.tenant` of the client for which it is done; its rights and weight count.
            priority: The tenant's own unless given; never above what its key may ask for.
            timeout_s: A deadline; None for none.
            request_id: For the logs.

        Raises:
            RequestError: At once, as `Caller.model` and a full queue do; NotReady while the server drains, or where the
                model would have to be loaded first: call `wait_ready`, or `Caller.model` in a call that still runs.
        """
        ...
