"""The playground and the live view at a gateway: the servers' own page, and of their batches what a key may see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright
from yarl import URL

from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.memory.need import Claim, MemoryKind
from sixfold.core.serving.live_routes import MAX_FEEDS
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.gateway.settings import GatewaySettings
from tests.browser import WHY_SKIPPED, find_chromium, open_page, start_browser
from tests.core.serving.fake_replica import FakeModel
from tests.core.serving.server_thread import ServerThread
from tests.core.serving.test_live import WatchedFake, joined, stepped
from tests.core.serving.test_playground import HTML, TabbedAPI
from tests.scaling.gateway.gateway_thread import GatewayThread
from tests.scaling.gateway.scripted import RunningGateway, ScriptedReplica, fleet, run_gateway

KEYS = tuple(
    ApiKeySettings(name=name, sha256=hash_key(name), models=models)
    for name, models in (("ana", None), ("ben", ("parrot",)), ("cyd", ("owl",)))
)
REPLICA_KEY = ApiKeySettings(name="gateway", sha256=hash_key("inner"), acts_for_others=True)
SHARED_KEY = ApiKeySettings(name="gateway", sha256=hash_key("inner"))


class World:
    """Two servers: one of two models, with a tab of its own, and one of a third."""

    def __init__(self, folder: Path, key: ApiKeySettings | None) -> None:
        self.api = TabbedAPI()
        self.api.script = folder / "echo.js"
        self.api.script.write_text("export function mount(root) { root.append('an echo'); }\n")
        settings = ServerSettings(api_keys=() if key is None else (key,))
        ledger = MemoryLedger({"cpu": 1 << 30})
        for name in ("parrot", "owl"):
            ledger.claim(name, name, [Claim(device="cpu", kind=MemoryKind.WEIGHTS, num_bytes=100 << 20)])
        self.parrot, self.owl, self.finch = WatchedFake(), WatchedFake(), WatchedFake()
        self.first = ServerThread(
            FakeModel("parrot", replicas=[self.parrot]),
            FakeModel("owl", replicas=[self.owl]),
            apis=[self.api],
            settings=settings,
            ledger=ledger,
        )
        self.second = ServerThread(FakeModel("finch", replicas=[self.finch]), settings=settings)

    def gateway(self, *, keys: tuple[ApiKeySettings, ...] = (), **server: Any) -> Gateway:
        own: dict[str, Any] = {"replica_key": "inner"} if keys else {}
        settings = {
            "replicas": [self.first.url, self.second.url],
            "server": ServerSettings(port=0, api_keys=keys, **server),
            **own,
        }
        return Gateway(GatewaySettings.model_validate(settings))


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, None)
    with world.first, world.second:
        yield world


@pytest.fixture(params=[REPLICA_KEY, SHARED_KEY], ids=["tells tenants", "does not"])
def keyed(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(tmp_path, request.param)
    with world.first, world.second:
        yield world


async def test_browsers_get_the_servers_own_page_with_the_tabs_of_all_and_programs_a_line(plain: World) -> None:
    async with run_gateway(plain.gateway()) as gateway:
        for path in ("/", "/playground/main.js", "/playground/echo/echo.js"):
            status, body, headers = await gateway.ask(path=path, method="GET", **HTML)
            there = plain.first.ask("GET", path, headers=HTML)
            assert (status, body) == (200, there.body), path
            for name in ("content-security-policy", "etag", "content-type", "cache-control"):
                assert headers[name] == there.headers[name]
        packed = await gateway.ask(path="/playground/main.js", method="GET", accept_encoding="gzip")
        assert packed[2]["content-encoding"] == "gzip"
        etag = packed[2]["etag"]
        assert (await gateway.ask(path="/playground/main.js", method="GET", if_none_match=etag))[0] == 304
        facts = await gateway.ask_json(path="/playground/page.json", method="GET")
        assert [panel["id"] for panel in facts["panels"]] == ["echo"]
        assert (facts["has_servers"], facts["tells_decisions"]) == (True, True)
        assert (await gateway.ask(path="/", method="GET"))[1].startswith(b"sixfold gateway")
        for path in ("/playground/nothing.js", "/playground/..%2fsettings.py", "/playground/%2e%2e/v1/models"):
            async with gateway.session.get(URL(gateway.url + path, encoded=True)) as response:
                assert response.status == 404, path


async def test_a_gateway_whose_page_is_off_or_whose_servers_have_none_says_so(plain: World) -> None:
    async with run_gateway(plain.gateway(playground=False)) as gateway:
        assert (await gateway.ask(path="/playground/main.js", method="GET"))[0] == 404
        assert (await gateway.ask(path="/", method="GET", **HTML))[1].startswith(b"sixfold gateway")
    async with fleet(ScriptedReplica("of another maker")) as gateway:
        assert (await gateway.ask(path="/playground/page.json", method="GET"))[0] == 404
        assert (await gateway.ask(path="/", method="GET", **HTML))[0] == 200
        status, body, _headers = await gateway.ask(path="/live", method="GET")
        assert (status, json.loads(body)["error"]["code"]) == (503, "not_ready")


@asynccontextmanager
async def feed(gateway: RunningGateway, query: str = "", **headers: str) -> AsyncGenerator[Any]:
    """The messages of a stream of ``/live``."""
    given = {"accept": "text/event-stream", **headers}
    async with gateway.session.get(f"{gateway.url}/live{query}", headers=given) as response:
        assert response.status == 200, await response.text()

        async def messages() -> AsyncGenerator[Any]:
            while line := await response.content.readline():
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

        yield messages()


async def test_the_live_view_is_that_of_the_server_that_was_chosen(plain: World) -> None:
    async with run_gateway(plain.gateway()) as gateway:
        servers = (await gateway.ask_json(path="/live/servers", method="GET"))["data"]
        assert {each["id"]: set(each["models"]) for each in servers} == {
            plain.first.url: {"parrot", "owl"},
            plain.second.url: {"finch"},
        }
        async with feed(gateway, f"?server={plain.second.url}") as messages:
            assert [model["name"] for model in (await anext(messages))["models"]] == ["finch"]
            plain.finch.tell(plain.second, joined(1), stepped(1, (1, 8)))
            events: list[Any] = []
            while len(events) < 2:
                events += (await anext(messages))["models"][0]["replicas"][0]["events"]
            assert events[0]["request_id"] == "req_1"
        assert await asyncio.to_thread(plain.finch.is_left.wait, 20)
        moment = await gateway.ask_json(path="/live", method="GET")
        assert len(moment["models"]) in (1, 2)
        assert (await gateway.ask(path="/live?server=http://elsewhere", method="GET"))[0] == 404


async def test_a_feed_ends_when_the_gateway_drains(plain: World) -> None:
    chosen = f"?server={plain.first.url}"
    async with run_gateway(plain.gateway()) as gateway, feed(gateway, chosen) as messages:
        await anext(messages)
        gateway.gateway.drain.begin()
        while await anext(messages, None):
            pass
    assert await asyncio.to_thread(plain.parrot.is_left.wait, 20)


async def test_a_key_sees_the_models_that_it_may_use_and_the_ids_of_its_own_requests(keyed: World) -> None:
    tells = keyed.first.server.settings.api_keys[0].acts_for_others
    async with run_gateway(keyed.gateway(keys=KEYS)) as gateway:
        assert (await gateway.ask(path="/live", method="GET"))[0] == 401
        ben = {"authorization": "Bearer ben"}
        (server,) = (await gateway.ask_json(path="/live/servers", method="GET", **ben))["data"]
        assert (server["id"], server["models"]) == (keyed.first.url, ["parrot"])
        assert (await gateway.ask(path=f"/live?server={keyed.second.url}", method="GET", **ben))[0] == 404
        async with feed(gateway, **ben) as messages:
            first = await anext(messages)
            tenants = ("gateway/ben", "gateway/ana", "gateway")
            keyed.parrot.tell(keyed.first, *(joined(at, tenant=tenant) for at, tenant in enumerate(tenants)))
            events: list[Any] = []
            while len(events) < 3:
                events += (await anext(messages))["models"][0]["replicas"][0]["events"]
        assert [event["request_id"] for event in events] == (["req_0", None, None] if tells else [None] * 3)
        assert [model["name"] for model in first["models"]] == ["parrot"]
        assert [each["holder"] for each in first["memory"][0]["holdings"]] == ["parrot", "other models"]
        moment = await gateway.ask_json(path="/live", method="GET", **ben)
        assert [model["name"] for model in moment["models"]] == ["parrot"]


async def test_a_key_watches_as_often_as_at_a_server_and_no_more(plain: World) -> None:
    async with run_gateway(plain.gateway()) as gateway:
        async with AsyncExitStack() as stack:
            feeds = [await stack.enter_async_context(feed(gateway)) for _ in range(MAX_FEEDS)]
            for messages in feeds:
                await anext(messages)
            assert (await gateway.ask(path="/live", method="GET", accept="text/event-stream"))[0] == 429


@pytest.mark.skipif(find_chromium() is None, reason=WHY_SKIPPED)
def test_in_a_browser_the_tabs_work_and_the_live_view_changes_servers(plain: World) -> None:
    with (
        GatewayThread(plain.gateway()) as gateway,
        sync_playwright() as running,
        open_page(start_browser(running), gateway.url) as (page, seen),
    ):
        page.get_by_text("an echo").wait_for()
        page.get_by_role("tab", name="Live").click()
        chooser = page.get_by_role("combobox", name="Server", exact=True)
        chooser.select_option(plain.second.url)
        page.get_by_role("heading", name="finch").wait_for()
        plain.finch.tell(plain.second, joined(1), stepped(1, (1, 8)))
        page.get_by_role("cell", name="req_1").wait_for()
        chooser.select_option(plain.first.url)
        page.get_by_role("heading", name="parrot").wait_for()
        assert page.get_by_role("heading", name="finch").count() == 0
        assert plain.finch.is_left.wait(20)
        seen.assert_none()
