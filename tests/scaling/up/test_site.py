"""What a running ``sixfold up`` makes of a changed configuration file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml

from sixfold.core.decisions import DecisionLog
from sixfold.core.serving.lifecycle import Listening
from sixfold.scaling.cluster.engine import RayEngine
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.registry import Division, Registry
from sixfold.scaling.registry_settings import RegistryPlace
from sixfold.scaling.up import site as site_module
from sixfold.scaling.up.settings import load_site
from sixfold.scaling.up.site import RunningSite

MODELS: dict[str, Any] = {"chat": {"source": "file:chat"}}
ROLES = {"chat": {"roles": {"max_replicas": 6, "ttft_s": 1.0, "inter_token_s": 0.05}}}
SPLITS = {"disaggregation": {"prefill_tokens_per_s": 1000, "kv_bytes_per_token": 1000}}


@dataclass
class Record:
    """What a replica that computes prompts tells of itself."""

    url: str = "http://prompts"
    role: str = "prefill"


class Replica:
    """A replica of ``chat`` as a gateway sees it."""

    record = Record()
    up = True
    draining = False

    def serves(self, model: str) -> bool:
        return model == "chat"


class FakeGateway:
    """It sees one replica, which computes prompts."""

    fleet = (Replica(),)


Write = Callable[..., None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


@pytest.fixture
def write(path: Path) -> Write:
    def written(*, models: dict[str, Any] = MODELS, **cluster: Any) -> None:
        path.write_text(yaml.safe_dump({"models": models, "cluster": cluster}))

    return written


def running_site(
    path: Path,
    gateway: object = None,
    table: object = None,
    on_ready: Callable[[], None] = lambda: None,
) -> RunningSite:
    return RunningSite(
        load_site(path, environ={}),
        cast("Gateway", gateway or FakeGateway()),
        config=path,
        read=lambda: load_site(path, environ={}),
        registry=RegistryPlace(path=path.with_name("replicas.db")),
        table=cast("Registry", table),
        replica_key=None,
        address=None,
        keep=False,
        on_ready=lambda _url, _models: on_ready(),
    )


def test_roles_that_are_added_hold_at_once_where_the_gateway_splits_prompts(path: Path, write: Write) -> None:
    write(gateway=SPLITS)
    running = running_site(path)
    assert running.urls("chat-prefill") == []
    write(gateway=SPLITS, services=ROLES)
    running.reload()
    assert running.urls("chat-prefill") == ["http://prompts"]


def test_roles_that_are_added_together_with_what_the_gateway_needs_for_them_ask_for_a_restart(
    path: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write()
    running = running_site(path)
    write(gateway=SPLITS, services=ROLES)
    running.reload()
    assert running.urls("chat-prefill") == []
    assert "Restart 'sixfold up'" in caplog.text
    assert "cluster.services.chat.roles" in caplog.text


class ChatReplica(Replica):
    """It answers clients; nobody listens where it is."""

    record = Record(url="http://127.0.0.1:9", role="any")


class ChatGateway:
    """It sees one replica of ``chat``."""

    def __init__(self) -> None:
        self.fleet = (ChatReplica(),)
        self.shares: dict[str, Any] = {}
        self.decisions = DecisionLog()


class FakeRay:
    """A local Ray that runs until it is stopped."""

    head_url = "http://head:8265"

    def __init__(self) -> None:
        self.is_running = False
        self.num_stops = 0

    async def start(self) -> None:
        self.is_running = True

    async def stop(self) -> None:
        self.is_running = False
        self.num_stops += 1


class FakeListening:
    """A port that takes connections, and its lifecycle."""

    url = "http://127.0.0.1:8000"
    forced_by = None

    def __init__(self) -> None:
        self.lifecycle = self

    def drain(self) -> None: ...


class FakeHead:
    """Ray's REST interface. It says nothing else than what is in ``answers`` while there is something."""

    def __init__(self) -> None:
        self.answers: list[httpx.Response] = []
        self.num_looks = 0
        self._applications: dict[str, Any] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            applications = json.loads(request.content)["applications"]
            self._applications = {
                each["name"]: {"status": "RUNNING", "deployed_app_config": each} for each in applications
            }
            return httpx.Response(200)
        if "nodes" in request.url.path:
            return httpx.Response(200, json={"data": {"result": {"result": []}}})
        self.num_looks += 1
        return self.answers.pop(0) if self.answers else httpx.Response(200, json={"applications": self._applications})


class FakeTable:
    """A registry that takes everything, but for what is in ``failures``."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.num_divided = 0

    def divide(self, _service: str, _division: Division | None) -> None:
        self.num_divided += 1
        if self.failures:
            raise self.failures.pop(0)


@dataclass
class Scene:
    """A site that is ready, on a Ray of its own."""

    running: RunningSite
    ray: FakeRay
    head: FakeHead
    table: FakeTable

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds():
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def ready_site(path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Scene]:
    write()
    ray, head, table, ready = FakeRay(), FakeHead(), FakeTable(), asyncio.Event()
    monkeypatch.setattr(site_module, "_STEP_S", 0.0)
    monkeypatch.setattr(site_module, "LocalRay", lambda: ray)
    monkeypatch.setattr(site_module, "RayEngine", partial(RayEngine, transport=httpx.MockTransport(head)))
    async with running_site(path, ChatGateway(), table, ready.set) as running:
        running.on_listening(cast("Listening", FakeListening()))
        async with asyncio.timeout(30):
            await ready.wait()
        yield Scene(running, ray, head, table)


async def test_a_head_that_answers_a_page_once_costs_no_replica(
    path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready_site(path, write, monkeypatch) as scene:
        scene.head.answers.append(httpx.Response(200, html="<html>Sign in</html>"))
        await scene.until(lambda: not scene.head.answers)
        seen = scene.head.num_looks
        await scene.until(lambda: scene.head.num_looks > seen + 1)
        assert scene.ray.num_stops == 0


async def test_a_defect_in_one_round_costs_no_replica(
    path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with ready_site(path, write, monkeypatch) as scene:
        models = {"notes": {"source": "file:notes"}, **MODELS}
        write(models=models)
        scene.table.failures.append(RuntimeError("a defect"))
        scene.running.reload()
        await scene.until(lambda: not scene.table.failures)
        seen = scene.table.num_divided
        await scene.until(lambda: scene.table.num_divided > seen)
        assert scene.ray.num_stops == 0
    assert "a defect" in caplog.text


class Closed(io.StringIO):
    """Standard error that nobody reads any more."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EPIPE, "nobody reads")


async def test_a_site_whose_progress_nobody_reads_starts_and_ends_as_any_other(
    path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Closed())
    async with ready_site(path, write, monkeypatch) as scene:
        assert scene.running.error is None
    assert scene.ray.num_stops == 1
