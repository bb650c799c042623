"""The application: a LitServer whose LitAPIs are the modalities, with an engine of our own behind them.

LitServe stays the face (LitAPI classes, specs, routes, middleware, ``authorize``). What lay behind it, a manager
process, one worker process per LitAPI and a pickled queue between, is replaced at five of its private seams;
tests/core/serving/test_litserve_seams.py says which and holds LitServe to them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import litserve as ls
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.routing import WebSocketRoute

from sixfold.core.autoscaling.load import ServerLoad
from sixfold.core.batches.api import BatchAPI
from sixfold.core.decisions import DecisionList
from sixfold.core.errors import PluginConflict, UsageError
from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.serving.api import ModalityAPI, Route, SocketRoute
from sixfold.core.serving.context import ServingContext, new_context
from sixfold.core.serving.data_folder import DataFolder
from sixfold.core.serving.directory import Directory
from sixfold.core.serving.drain import Drain
from sixfold.core.serving.error_responses import status_response
from sixfold.core.serving.gate import Gate
from sixfold.core.serving.in_process import InProcessTransport, PlainWorkers, RequestQueue
from sixfold.core.serving.inner_calls import InnerCalls
from sixfold.core.serving.live_routes import LiveRoutes
from sixfold.core.serving.modality_spec import ModalitySpec, RouteApp
from sixfold.core.serving.model_routes import ModelList, ModelObject, ModelRoutes
from sixfold.core.serving.openapi import OwnRoute, build_document
from sixfold.core.serving.playground import PREFIX, Playground
from sixfold.core.serving.probe_routes import Health, ProbeRoutes, Readiness
from sixfold.core.serving.replica_metrics import ReplicaCollector
from sixfold.core.serving.services import ModalityServices
from sixfold.core.serving.settings import ServerSettings
from sixfold.core.serving.socket_app import SocketApp

if TYPE_CHECKING:
    from sixfold.core.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)

_OWN = "Sixfold itself"
_SHUTDOWN_S = 5.0
"""What a modality may take to put its things away."""
_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{figure}-{what}" for figure in ("limit", "remaining", "reset") for what in ("requests", "tokens")
)
_EXPOSED_HEADERS = ("x-request-id", "retry-after", "retry-after-ms", "x-should-retry", *_LIMIT_HEADERS)


class SixfoldServer(ls.LitServer):  # type: ignore[misc]  # litserve ships no types
    """All modalities on one port, in this process.

    Args:
        apis: One ModalityAPI a modality, and any plain LitAPIs, which run in threads of this process.
        directory: The models.
        settings: What the operator set.
        ledger: The account of memory, for those who watch.
        middlewares: ASGI middleware around the routes and inside of the gate; the last is outermost.
        tracing: Where traces of requests go; closed by the caller.

    Raises:
        PluginConflict: Two routes have one path.
        UsageError: There is no LitAPI, or one asks for what this server does not do.
    """

    def __init__(
        self,
        apis: Sequence[ls.LitAPI],
        directory: Directory,
        settings: ServerSettings | None = None,
        *,
        ledger: MemoryLedger | None = None,
        middlewares: Sequence[Middleware] = (),
        tracing: Tracing | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        self.context: ServingContext = new_context(self.settings, directory, tracing=tracing)
        self.context.metrics.registry.register(ReplicaCollector(directory, self.context.metrics))
        self._inner = InnerCalls(self.context)
        if not apis:
            raise UsageError("No plugin brings an HTTP face. Install an extra, for example sixfold[all].")
        apis = [*apis, BatchAPI(self._inner, self.settings)]
        self._given_middlewares = tuple(middlewares)
        self._ledger = ledger
        self._folder = DataFolder(self.settings.data_dir)
        self._plain_workers = PlainWorkers()
        self._plain_apis = [api for api in apis if not isinstance(api, ModalityAPI)]
        self._modality_apis = [api for api in apis if isinstance(api, ModalityAPI)]
        self._modality_routes: list[tuple[str, Route | SocketRoute]] = []
        self._origin_of_path: dict[tuple[str, str], str] = {}
        _prepare(apis)
        for path in {api.api_path for api in self._plain_apis}:
            if sum(api.api_path == path for api in self._plain_apis) > 1:
                raise PluginConflict(f"Two LitAPIs have the path {path!r}. Give one another api_path.")
        super().__init__(list(apis), accelerator="cpu", devices=1, timeout=False)
        self.app.title = "Sixfold"
        self.app.router.redirect_slashes = False
        self.app.openapi = self._openapi
        self.app.add_exception_handler(StarletteHTTPException, _answer_http_exception)
        self.app.add_exception_handler(RequestValidationError, _answer_validation_error)

    @property
    def drain(self) -> Drain:
        """Who is running, and the way to end it."""
        return self.context.drain

    def setup_auth(self, lit_api: ls.LitAPI | None = None) -> Callable[..., Any]:
        """A plain LitAPI's own ``authorize``, after the gate has checked the key; LitServe's ``X-API-Key`` is not used."""
        authorize = getattr(lit_api, "authorize", None)
        return authorize if callable(authorize) else _already_checked

    def _register_internal_endpoints(self) -> None:
        probes = ProbeRoutes(self.context, self._folder, self._plain_apis_ready)
        models = ModelRoutes(self.context)
        page = Playground(self._modality_apis, enabled=self.settings.playground)
        live = LiveRoutes(self.context, self._ledger)
        hides_figures = self.settings.protect_metrics
        self._own_routes = (
            OwnRoute(path="/", endpoint=page.index, media_types=("text/html", "text/plain"), needs_key=False),
            OwnRoute(path="/health", endpoint=probes.health, answer=Health, needs_key=False),
            OwnRoute(path="/ready", endpoint=probes.ready, answer=Readiness, statuses=(200, 503), needs_key=False),
            OwnRoute(path="/load", endpoint=probes.load, answer=ServerLoad, needs_key=hides_figures),
            OwnRoute(path="/live", endpoint=live.live, media_types=("application/json", "text/event-stream")),
            OwnRoute(path="/metrics", endpoint=probes.metrics, media_types=("text/plain",), needs_key=hides_figures),
            OwnRoute(path="/decisions", endpoint=probes.decisions, answer=DecisionList),
            OwnRoute(path="/v1/models", endpoint=models.list_models, answer=ModelList),
            OwnRoute(path="/v1/models/{model_id:path}", endpoint=models.get_model, answer=ModelObject),
        )
        described = [(route.path, route.endpoint) for route in self._own_routes]
        for path, endpoint in (*described, (PREFIX + "page.json", page.facts), (PREFIX + "{path:path}", page.file)):
            self._claim(path, "GET", _OWN)
            # Load balancers probe with HEAD.
            for method in ("GET", "HEAD"):
                self.app.add_api_route(path, endpoint, methods=[method], response_model=None, include_in_schema=False)

    def _register_api_endpoints(self, lit_api: ls.LitAPI, request_type: Any, response_type: Any) -> None:
        if not isinstance(lit_api, ModalityAPI):
            for path, methods in _paths_of(lit_api):
                for method in methods:
                    self._claim(path, method, type(lit_api).__name__)
        super()._register_api_endpoints(lit_api, request_type, response_type)

    def _register_spec_endpoints(self, lit_api: ls.LitAPI) -> None:
        spec = lit_api.spec
        if not isinstance(spec, ModalitySpec):
            super()._register_spec_endpoints(lit_api)
            return
        modality = spec.modality
        for route in spec.routes:
            self._modality_routes.append((modality, route))
            if isinstance(route, SocketRoute):
                self._claim(route.path, "WebSocket", f"modality {modality!r}")
                self.app.router.routes.append(WebSocketRoute(route.path, SocketApp(route, self.context)))
                continue
            self._claim(route.path, route.method, f"modality {modality!r}")
            if route.in_batches:
                self._inner.offer(route)
            # Starlette's own route, not FastAPI's: bodies are validated once, by Call.json, and errors are ours.
            self.app.router.routes.append(
                StarletteRoute(route.path, RouteApp(route, self.context), methods=[route.method], name=route.path)
            )

    def _register_middleware(self) -> None:
        # LitServe's own list also has gzip when no LitAPI streams; a stream must never pass through it.
        for middleware in self._given_middlewares:
            self.app.add_middleware(middleware.cls, *middleware.args, **middleware.kwargs)
        plain_paths = frozenset(path for api in self._plain_apis for path, _ in _paths_of(api))
        self.app.add_middleware(Gate, context=self.context, is_plain=plain_paths.__contains__)
        if self.settings.cors_origins:
            self.app.add_middleware(
                CORSMiddleware,
                allow_origins=list(self.settings.cors_origins),
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=list(_EXPOSED_HEADERS),
            )

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncGenerator[None]:
        """Runs plain LitAPIs, and what modalities have beside their routes. Entered in the event loop that serves."""
        transport = InProcessTransport(self.response_buffer, asyncio.get_running_loop())
        app.response_queue_id = 0  # type: ignore[attr-defined]  # LitServe's own attribute
        for api in self._plain_apis:
            requests = self.litapi_request_queues[api.api_path] = RequestQueue()
            if api.spec is not None:
                api.spec.setup(self)
                api.spec.response_queue_id = 0
            self._plain_workers.start(api, self.devices[0], requests, transport, self._callback_runner)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._plain_workers.stop)
            stack.callback(self._folder.close)
            for modality in self._modality_apis:
                await modality.startup(ModalityServices(self.context, self._folder, modality.modality))
                stack.push_async_callback(_shut_down, modality)
            yield

    def run(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuses: LitServe's ``run`` would start its own processes.

        Raises:
            UsageError: Always.
        """
        raise UsageError("Start a SixfoldServer with sixfold.core.serving.lifecycle.run(server).")

    def _claim(self, path: str, method: str, owner: str) -> None:
        if path.startswith(PREFIX) and owner is not _OWN:
            raise PluginConflict(f"{owner} serves {path}, but paths below {PREFIX} need no key. Choose another path.")
        first = self._origin_of_path.setdefault((path, method), owner)
        if first is not owner:
            raise PluginConflict(f"{first} and {owner} both serve {method} {path}. Uninstall one or change its path.")

    async def _plain_apis_ready(self) -> bool:
        if not self._plain_workers.ready:
            return False
        for api in self._plain_apis:
            healthy = api.health()
            if inspect.isawaitable(healthy):
                healthy = await healthy
            if not healthy:
                return False
        return True

    def _openapi(self) -> dict[str, Any]:
        if self.app.openapi_schema is None:
            self.app.openapi_schema = build_document(
                self.app, self._modality_routes, version=version("sixfold"), own=self._own_routes
            )
        document: dict[str, Any] = self.app.openapi_schema
        return document


async def _shut_down(api: ModalityAPI) -> None:
    try:
        async with asyncio.timeout(_SHUTDOWN_S):
            await api.shutdown()
    except Exception:  # a stranger's code may raise anything; the others still get their turn
        logger.exception("the HTTP face of %r did not shut down in order", api.modality)


def _prepare(apis: Sequence[ls.LitAPI]) -> None:
    """Gives each modality its spec and refuses what would otherwise be ignored."""
    for api in apis:
        if getattr(api, "mcp", None) is not None:
            raise UsageError(f"{type(api).__name__}: mcp is not supported here. Remove it.")
        if not isinstance(api, ModalityAPI):
            continue
        if hasattr(api, "authorize"):
            raise UsageError(
                f"{type(api).__name__}.authorize would never be called: routes of a modality are guarded by "
                "server.api_keys. Remove it."
            )
        api.spec = ModalitySpec(api)
        api.stream = True


def _paths_of(api: ls.LitAPI) -> Iterable[tuple[str, Sequence[str]]]:
    if api.spec is None:
        return [(api.api_path, ("POST",))]
    return [(path, tuple(methods)) for path, _, methods in api.spec.endpoints]


async def _already_checked() -> None:
    """A dependency that does nothing; async, because FastAPI runs the others in its thread pool."""


async def _answer_http_exception(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, StarletteHTTPException)
    message = str(failure.detail)
    if failure.status_code == 404 and message == "Not Found":
        message = f"There is no route {request.method} {request.url.path[:200]}. GET /openapi.json lists all."
    elif failure.status_code == 405:
        message = f"{request.url.path[:200]} does not take {request.method}. GET /openapi.json lists what it takes."
    headers = dict(failure.headers or {})
    return status_response(failure.status_code, message, headers)


async def _answer_validation_error(_request: Request, failure: Exception) -> Response:
    assert isinstance(failure, RequestValidationError)
    first: dict[str, Any] = failure.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return status_response(400, f"Invalid parameter {place!r}: {first['msg']}." if place else f"{first['msg']}.")
