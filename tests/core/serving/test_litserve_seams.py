"""Contract tests: what LitServe 0.2.19 must keep for `SixfoldServer` to stand on it. A new version fails here first."""

from __future__ import annotations

import importlib
import inspect
import re
import threading
from importlib.metadata import requires, version
from typing import Any

import litserve as ls
import pytest
from fastapi import HTTPException
from litserve.loops import inference_worker
from litserve.specs.base import LitSpec
from litserve.transport.base import MessageTransport
from litserve.utils import LitAPIStatus, LoopResponseType, ResponseBufferItem, WorkerSetupStatus
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from sixfold.core.errors import PluginConflict, UsageError
from sixfold.core.serving import in_process
from sixfold.core.serving.api import Call, ModalityAPI, Route
from sixfold.core.serving.server import SixfoldServer
from sixfold.core.serving.settings import ServerSettings
from tests.core.serving.fake_replica import TIMEOUT_S, EchoAPI, FakeDirectory, FakeModel, FakeReplica, PlainAPI
from tests.core.serving.server_thread import ServerThread

# Imported by name: the stubs in typings/ declare only what the product uses.
litserve_server: Any = importlib.import_module("litserve.server")
loops_base: Any = importlib.import_module("litserve.loops.base")


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_that_the_seams_were_read_from() -> None:
    pins = [text for text in requires("sixfold") or () if re.match(r"litserve\b", text)]
    assert pins == [f"litserve=={version('litserve')}"]
    assert version("litserve") == "0.2.19"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("_register_internal_endpoints", ["self"]),
        ("_register_api_endpoints", ["self", "lit_api", "request_type", "response_type"]),
        ("_register_spec_endpoints", ["self", "lit_api"]),
        ("_register_middleware", ["self"]),
        ("_get_request_queue", ["self", "api_path"]),
        ("setup_auth", ["self", "lit_api"]),
        ("lifespan", ["self", "app"]),
    ],
)
def test_each_seam_of_the_server_has_its_shape(name: str, arguments: list[str]) -> None:
    assert parameters(getattr(ls.LitServer, name)) == arguments


def test_the_constructor_registers_through_the_seams_and_starts_nothing() -> None:
    source = inspect.getsource(ls.LitServer.__init__)
    assert "self.register_endpoints()" in source
    assert "self._register_middleware()" in source
    assert "lifespan=self.lifespan" in source
    for starter in ("_init_manager(", "launch_inference_worker(", "Manager()"):
        assert starter not in source


def test_the_handlers_put_what_the_loops_get() -> None:
    source = inspect.getsource(litserve_server.BaseRequestHandler._submit_request)
    assert "request_queue.put((response_queue_id, uid, time.monotonic(), payload))" in source
    assert "self.server._get_request_queue(self.lit_api.api_path)" in source
    assert "self.server.app.response_queue_id" in source
    assert in_process.STOP == loops_base._SENTINEL_VALUE


def test_the_loops_send_what_the_transport_delivers() -> None:
    assert parameters(MessageTransport.send) == ["self", "item", "consumer_id"]
    source = inspect.getsource(loops_base.LitLoop.put_response)
    assert "transport.send((uid, (response_data, status, response_type, self.worker_id))" in source
    assert parameters(inference_worker) == [
        "lit_api",
        "device",
        "worker_id",
        "request_queue",
        "transport",
        "workers_setup_status",
        "callback_runner",
        "restart_workers",
    ]
    assert {"event", "response_queue", "response", "worker_id"} <= set(parameters(ResponseBufferItem))
    assert (LitAPIStatus.START, LoopResponseType.STREAMING) is not None
    assert (WorkerSetupStatus.STARTING, WorkerSetupStatus.READY) == ("starting", "ready")


def test_a_spec_has_endpoints_and_a_path() -> None:
    assert parameters(LitSpec.add_endpoint) == ["self", "path", "endpoint", "methods"]
    assert isinstance(inspect.getattr_static(LitSpec, "endpoints"), property)


def test_a_plain_lit_api_is_served_by_litserves_own_loop_in_this_process() -> None:
    api = PlainAPI(api_path="/square")
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), apis=[EchoAPI(), api]) as served:
        assert served.ask("POST", "/square", {"input": 7}).json == {"output": 49}
        assert served.echo("a").status == 200
        assert served.ask("GET", "/ready").status == 200
        teapot = served.ask("POST", "/square", {"input": "teapot"})
        assert (teapot.status, teapot.error["message"]) == (418, "short and stout")
        defect = served.ask("POST", "/square", {"input": "text"})
        assert (defect.status, defect.error["code"]) == (500, "internal_error")
        assert api.device_seen == "cpu"
        assert "/square" in served.ask("GET", "/openapi.json").json["paths"]


def test_a_plain_lit_api_gets_no_body_over_the_limit() -> None:
    with ServerThread(apis=[PlainAPI(api_path="/square")], settings=ServerSettings(max_body_bytes=1024)) as served:
        answer = served.ask("POST", "/square", {"input": "x" * 2000})
        assert (answer.status, answer.error["code"]) == (413, "payload_too_large")


class HeldAPI(PlainAPI):
    """Answers when it is allowed to."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.begun, self.release = threading.Event(), threading.Event()

    def predict(self, x: Any, **_context: Any) -> Any:
        self.begun.set()
        assert self.release.wait(TIMEOUT_S)
        return {"output": "late"}


def test_a_plain_lit_apis_running_request_is_waited_for_when_the_server_drains() -> None:
    api = HeldAPI(api_path="/held")
    with ServerThread(apis=[api]) as served:
        connection = served.connect()
        connection.request("POST", "/held", b"{}", {"content-type": "application/json"})
        assert api.begun.wait(TIMEOUT_S)
        served.in_loop(served.listening.lifecycle.drain)
        assert served.ask("POST", "/held", {}).error["code"] == "draining"
        api.release.set()
        assert connection.getresponse().read() == b'{"output":"late"}'
        connection.close()


class StreamingAPI(ls.LitAPI):  # type: ignore[misc]  # litserve ships no types
    """Counts."""

    def setup(self, device: str) -> None:
        pass

    def predict(self, x: Any, **_context: Any) -> Any:
        for number in range(x["input"]):
            yield {"number": number}

    def encode_response(self, output: Any, **_context: Any) -> Any:
        yield from output


class BatchedAPI(PlainAPI):
    """Batches."""

    def predict(self, x: Any, **_context: Any) -> Any:
        return [{"output": value["input"] + len(x)} for value in x]


def test_streams_and_batches_of_plain_lit_apis_work() -> None:
    apis = [
        StreamingAPI(api_path="/count", stream=True),
        BatchedAPI(api_path="/batch", max_batch_size=4, batch_timeout=0.01),
    ]
    with ServerThread(apis=apis) as served:
        assert served.ask("POST", "/count", {"input": 2}).body == b'{"number": 0}\n{"number": 1}\n'
        assert served.ask("POST", "/batch", {"input": 1}).json == {"output": 2}


class Guarded(PlainAPI):
    """Has a guard of its own."""

    async def authorize(self) -> None:
        raise HTTPException(403, "not you")


def test_a_plain_lit_apis_own_authorize_is_called() -> None:
    with ServerThread(apis=[Guarded(api_path="/square")]) as served:
        refused = served.ask("POST", "/square", {"input": 1})
        assert (refused.status, refused.error["message"]) == (403, "not you")


class Shadow(ModalityAPI):
    """Claims another modality's route."""

    modality = "shadow"

    def routes(self) -> tuple[Route, ...]:
        async def endpoint(call: Call) -> Any:
            raise NotImplementedError

        return (Route(path="/v1/echo", endpoint=endpoint),)


class Intruder(Shadow):
    """Claims a route of the server itself."""

    modality = "intruder"

    def routes(self) -> tuple[Route, ...]:
        return (Route(path="/health", endpoint=super().routes()[0].endpoint, method="GET"),)


@pytest.mark.parametrize(
    ("apis", "names"),
    [
        ([EchoAPI(), Shadow()], ["modality 'echo'", "modality 'shadow'", "/v1/echo"]),
        ([EchoAPI(), Intruder()], ["Sixfold itself", "modality 'intruder'", "/health"]),
        ([EchoAPI(), PlainAPI(api_path="/v1/echo")], ["modality 'echo'", "PlainAPI", "/v1/echo"]),
        ([PlainAPI(), PlainAPI()], ["/predict"]),
    ],
)
def test_two_routes_with_one_path_are_a_conflict_that_names_both(apis: list[ls.LitAPI], names: list[str]) -> None:
    with pytest.raises(PluginConflict) as conflict:
        SixfoldServer(apis, FakeDirectory())
    for name in names:
        assert name in str(conflict.value)


class SelfGuarded(EchoAPI):
    """Believes that its own guard is called."""

    async def authorize(self) -> None:
        return None


def test_what_would_be_ignored_is_refused() -> None:
    with pytest.raises(UsageError, match="authorize"):
        SixfoldServer([SelfGuarded()], FakeDirectory())
    with pytest.raises(UsageError, match="extra"):
        SixfoldServer([], FakeDirectory())
    with pytest.raises(UsageError, match="lifecycle"):
        SixfoldServer([EchoAPI()], FakeDirectory()).run()


def test_middlewares_wrap_the_routes_and_gzip_is_never_added() -> None:
    seen: list[str] = []

    class Witness:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                seen.append(scope["path"])
            await self.app(scope, receive, send)

    server = SixfoldServer([PlainAPI()], FakeDirectory(), middlewares=[Middleware(Witness)])
    kinds = [getattr(middleware.cls, "__name__", "") for middleware in server.app.user_middleware]
    assert kinds == ["Gate", "Witness"]
