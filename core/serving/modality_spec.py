"""Puts a modality's routes under LitServe: a LitSpec that lists them, and the ASGI application of each."""

from __future__ import annotations

from typing import Any

from litserve.specs.base import LitSpec
from starlette.types import Receive, Scope, Send

from sixfold.core.serving.api import ModalityAPI, Route
from sixfold.core.serving.call import HttpCall
from sixfold.core.serving.context import SCOPE_KEY, ServingContext


class ModalitySpec(LitSpec):  # type: ignore[misc]  # litserve ships no types
    """The LitSpec of a ModalityAPI: its endpoints are the modality's routes.

    LitServe keeps one queue per ``api_path``, so each spec has a path of its own; no route is registered for it.
    """

    def __init__(self, api: ModalityAPI) -> None:
        super().__init__()
        self.api_path = f"/modalities/{api.modality}"
        self.modality = api.modality
        self.routes = tuple(api.routes())
        for route in self.routes:
            if isinstance(route, Route):
                self.add_endpoint(route.path, route.endpoint, [route.method])

    @property
    def stream(self) -> bool:
        """True: answers may be streams, so LitServe must not compress them."""
        return True

    def decode_request(self, request: Any, context_kwargs: Any = None) -> Any:
        """Never called: routes hand their input to a replica."""
        raise NotImplementedError("a ModalityAPI answers through its routes")

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:
        """Never called: routes make their own responses."""
        raise NotImplementedError("a ModalityAPI answers through its routes")


class RouteApp:
    """The ASGI application of one route.

    Args:
        route: What the plugin declared.
        context: The server's parts.
    """

    def __init__(self, route: Route, context: ServingContext) -> None:
        self._route = route
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; its errors go up to the gate.

        Raises:
            RequestError: What the client is to be told.
        """
        scope["route"] = self._route  # for the gate's metrics; not every version of the router leaves it there
        admitted = scope[SCOPE_KEY]
        call = HttpCall(self._context, scope, receive, admitted)
        limiter = admitted.principal.limiter
        limiter.begin()
        drain = self._context.drain
        drain.enter(call)
        try:
            response = await self._route.endpoint(call)
            await response(scope, receive, send)
        finally:
            call.close()
            drain.leave(call)
            limiter.end()
