"""What machines ask about the server itself: is it alive, is it ready, what are its figures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sixfold.core.autoscaling.sample import sample_load
from sixfold.core.decisions import merged
from sixfold.core.errors import PermissionDenied
from sixfold.core.serving.context import SCOPE_KEY, ServingContext
from sixfold.core.serving.data_folder import DataFolder
from sixfold.core.serving.directory import HostedModel, ModelState, takes_requests
from sixfold.core.serving.metrics import CONTENT_TYPE


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``GET /ready``.

    Attributes:
        status: ``loading``, ``ready`` or ``draining``.
        store_id: Of what the server keeps; ids of responses, videos, files and batches name it, so gateways find these.
        models: The state of each.
    """

    status: str
    store_id: str
    models: dict[str, str]


class Health(msgspec.Struct, frozen=True):
    """The answer to ``GET /health``."""

    status: Literal["ok"] = "ok"


_HEALTHY = msgspec.json.encode(Health())


class ProbeRoutes:
    """``/health``, ``/ready``, ``/load``, ``/decisions`` and ``/metrics``.

    Args:
        context: The server's parts.
        folder: Where the server keeps things.
        plain_apis_ready: Whether the LitAPIs without a family are set up and say that they are well.
    """

    def __init__(
        self, context: ServingContext, folder: DataFolder, plain_apis_ready: Callable[[], Awaitable[bool]]
    ) -> None:
        self._context = context
        self._folder = folder
        self._plain_apis_ready = plain_apis_ready
        self._started_s = monotonic()

    async def health(self, _request: Request) -> Response:
        """``GET /health``: 200 as long as the process answers."""
        return Response(_HEALTHY, media_type="application/json")

    async def ready(self, _request: Request) -> Response:
        """``GET /ready``: 200 when every model that should be ready is, else 503; the body lists states."""
        directory = self._context.directory
        if self._context.drain.begun or directory.draining:
            status = "draining"
        elif directory.ready and await self._plain_apis_ready():
            status = "ready"
        else:
            status = "loading"
        models = {model.name: _state(model) for model in directory.models()}
        body = Readiness(status=status, store_id=self._folder.store_id, models=models)
        return Response(msgspec.json.encode(body), 200 if status == "ready" else 503, media_type="application/json")

    async def load(self, _request: Request) -> Response:
        """``GET /load``: each model's load, for autoscalers and gateways."""
        load = sample_load(self._context.directory, self._context.metrics, started_s=self._started_s, now_s=monotonic())
        return Response(msgspec.json.encode(load), media_type="application/json")

    async def decisions(self, request: Request) -> Response:
        """``GET /decisions``: what models changed about themselves lately, and why; see `sixfold.core.decisions`.

        Raises:
            PermissionDenied: The key may not change models.
        """
        if not request.scope[SCOPE_KEY].principal.changes_models:
            raise PermissionDenied(
                "The key may not see decisions. The operator allows it by the key's 'changes_models'."
            )
        found = {
            f"{model.name}/{index}": replica.snapshot.decisions
            for model in self._context.directory.models()
            for index, replica in enumerate(model.replicas)
        }
        return Response(msgspec.json.encode(merged(found)), media_type="application/json")

    async def metrics(self, _request: Request) -> Response:
        """``GET /metrics``: Prometheus text."""
        return Response(self._context.metrics.exposition(), headers={"content-type": CONTENT_TYPE})


def _state(model: HostedModel) -> str:
    if model.state is ModelState.READY and not takes_requests(model):
        return "restarting"
    return model.state.value
