"""The page in a real browser, before models that do nothing: keys, paths, tabs, themes, and the live view."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, sync_playwright

from sixfold.core.batching.step_watch import Joined
from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.memory.need import Claim, MemoryKind
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from tests.browser import PHONE, WHY_SKIPPED, barriers, find_chromium, open_page, scrolls_sideways, start_browser
from tests.core.serving.fake_replica import FakeModel, FakeSnapshot
from tests.core.serving.server_thread import ServerThread
from tests.core.serving.test_live import WatchedFake, joined, stepped
from tests.core.serving.test_playground import TabbedAPI

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=WHY_SKIPPED)

ECHO_TAB = """
import { el } from "../elements.js";

export function mount(root, { models, announce }) {
  root.append(el("button", { type: "button", onclick: () => announce("echoed") }, `Echo ${models[0].id}`));
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as running:
        started = start_browser(running)
        yield started
        started.close()


@pytest.fixture
def api(tmp_path: Path) -> TabbedAPI:
    (tmp_path / "echo.js").write_text(ECHO_TAB)
    api = TabbedAPI()
    api.script = tmp_path / "echo.js"
    return api


@pytest.fixture
def replica() -> WatchedFake:
    snapshot = FakeSnapshot(num_running=3, metrics={"num_preemptions_total": 2.0})
    return WatchedFake(snapshot=snapshot)


@pytest.fixture
def served(api: TabbedAPI, replica: WatchedFake) -> Iterator[ServerThread]:
    ledger = MemoryLedger({"cpu": 1 << 30})
    ledger.claim("parrot", "parrot", [Claim(device="cpu", kind=MemoryKind.WEIGHTS, num_bytes=300 << 20)])
    with ServerThread(FakeModel("parrot", replicas=[replica]), apis=[api], ledger=ledger) as server:
        yield server


def show_steps(replica: WatchedFake, served: ServerThread) -> None:
    assert replica.is_watched.wait(20)
    replica.tell(served, joined(1), joined(2), *(stepped(number, (1, 8), (2, 1)) for number in range(1, 30)))


def test_a_plugins_tab_is_there_and_nothing_is_asked_for_elsewhere(browser: Browser, served: ServerThread) -> None:
    with open_page(browser, served.url) as (page, seen):
        page.get_by_role("button", name="Echo parrot").click()
        assert page.get_by_role("tab").all_inner_texts() == ["Echo", "Live"]
        assert page.locator("#news").inner_text() == "echoed"
        seen.assert_none()


def test_tabs_are_walked_by_the_keyboard_alone(browser: Browser, served: ServerThread) -> None:
    with open_page(browser, served.url) as (page, _seen):
        page.get_by_role("button", name="Echo parrot").wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the panel"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Echo"
        page.keyboard.press("ArrowRight")
        page.get_by_role("heading", name="The running batch").wait_for()
        assert page.evaluate("document.activeElement.textContent") == "Live"
        page.keyboard.press("Home")
        page.get_by_role("button", name="Echo parrot").wait_for()


def test_a_key_is_asked_for_kept_for_the_tab_and_never_stored(browser: Browser, api: TabbedAPI) -> None:
    settings = ServerSettings(api_keys=(ApiKeySettings(name="ward", sha256=hash_key("right")),))
    with (
        ServerThread(FakeModel("parrot"), apis=[api], settings=settings) as served,
        open_page(browser, served.url) as (page, _seen),
    ):
        page.get_by_label("Key", exact=True).fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        page.get_by_text("The API key is not known here.").wait_for()
        page.get_by_label("Key", exact=True).fill("right")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Echo parrot").wait_for()
        assert page.evaluate("Object.values(sessionStorage)") == ["right"]
        assert page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href").count("right") == 0


def test_the_page_works_below_a_path_of_a_proxy(browser: Browser, served: ServerThread) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route(
        "**/behind/proxy/**", lambda route: route.continue_(url=route.request.url.replace("/behind/proxy/", "/"))
    )
    page.goto(f"{served.url}/behind/proxy/")
    page.get_by_role("button", name="Echo parrot").wait_for()
    context.close()


def test_the_live_view_draws_steps_and_names_who_runs(
    browser: Browser, served: ServerThread, replica: WatchedFake
) -> None:
    with open_page(browser, f"{served.url}#live") as (page, seen):
        show_steps(replica, served)
        canvas = page.locator("canvas")
        canvas.wait_for()
        page.get_by_role("cell", name="req_1").wait_for()
        assert "step 29: 2 sequences" in (canvas.get_attribute("aria-label") or "")
        assert page.get_by_text("300 MiB").count() == 1
        canvas.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert page.locator(".tip").inner_text().startswith("Step 28")
        page.get_by_role("button", name="Pause").click()
        page.get_by_text("paused").wait_for()
        seen.assert_none()


def test_the_feed_stops_when_the_live_view_is_left(
    browser: Browser, served: ServerThread, replica: WatchedFake
) -> None:
    with open_page(browser, f"{served.url}#live") as (page, _seen):
        assert replica.is_watched.wait(20)
        page.get_by_role("tab", name="Echo").click()
        assert replica.is_left.wait(20)


def test_whoever_comes_back_to_the_live_view_sees_who_runs_now(
    browser: Browser, served: ServerThread, replica: WatchedFake
) -> None:
    with open_page(browser, f"{served.url}#live") as (page, _seen):
        show_steps(replica, served)
        page.get_by_role("cell", name="req_1").wait_for()
        replica.is_watched.clear()
        page.get_by_role("tab", name="Echo").click()
        assert replica.is_left.wait(20)
        page.get_by_role("tab", name="Live").click()
        assert replica.is_watched.wait(20)
        other = Joined(sequence=1, request=9, request_id="later/1#1", tenant="anonymous", units=4, waited_s=0.0)
        replica.tell(served, other, stepped(30, (1, 1)))
        page.get_by_role("cell", name="later").wait_for()
        assert page.get_by_role("cell", name="req_1").count() == 0


def test_a_sequence_whose_end_was_dropped_does_not_run_for_ever(
    browser: Browser, served: ServerThread, replica: WatchedFake
) -> None:
    with open_page(browser, f"{served.url}#live") as (page, _seen):
        show_steps(replica, served)
        page.get_by_role("cell", name="req_1").wait_for()
        replica.tell(served, stepped(30, (1, 1)), num_dropped=1)
        page.get_by_text("1 events were dropped").wait_for()
        replica.tell(served, *(stepped(number, (1, 1)) for number in range(31, 90)), num_dropped=1)
        page.get_by_role("cell", name="req_2").wait_for(state="detached")
        assert page.get_by_role("cell", name="req_1").count() == 1


def test_a_live_view_that_is_refused_for_now_comes_back_and_a_key_that_sees_no_decisions_asks_once(
    browser: Browser, api: TabbedAPI, replica: WatchedFake
) -> None:
    settings = ServerSettings(api_keys=(ApiKeySettings(name="ward", sha256=hash_key("right")),))
    full, asked = [True], list[str]()
    with (
        ServerThread(FakeModel("parrot", replicas=[replica]), apis=[api], settings=settings) as served,
        open_page(browser, served.url) as (page, _seen),
    ):

        def limit(route: Route) -> None:
            if full:
                full.clear()
                route.fulfill(status=429, json={"error": {"message": "16 live views"}})
            else:
                route.continue_()

        page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
        page.route("**/live", limit)
        page.get_by_label("Key", exact=True).fill("right")
        page.keyboard.press("Enter")
        page.get_by_role("tab", name="Live").click()
        page.get_by_text("too many live views are open").wait_for()
        page.get_by_text("live", exact=True).wait_for()
        page.get_by_role("tab", name="Echo").click()
        with page.expect_response("**/live"):
            page.get_by_role("tab", name="Live").click()
        assert asked.count("decisions") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out_of_the_live_view(
    browser: Browser, served: ServerThread, replica: WatchedFake, scheme: str
) -> None:
    with open_page(browser, f"{served.url}#live", color_scheme=scheme) as (page, _seen):
        show_steps(replica, served)
        page.get_by_role("cell", name="req_1").wait_for()
        assert barriers(page) == []


def test_the_theme_follows_the_system_until_it_is_chosen(browser: Browser, served: ServerThread) -> None:
    with open_page(browser, served.url, color_scheme="dark") as (page, _seen):
        button = page.get_by_role("button", name="Dark")
        dark = page.evaluate("getComputedStyle(document.body.parentElement).backgroundColor")
        assert button.get_attribute("aria-pressed") == "true"
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        page.reload()
        light = page.evaluate("getComputedStyle(document.body.parentElement).backgroundColor")
        assert light != dark


def test_the_live_view_fits_a_phone(browser: Browser, served: ServerThread, replica: WatchedFake) -> None:
    with open_page(browser, f"{served.url}#live", **PHONE) as (page, _seen):
        show_steps(replica, served)
        page.get_by_role("cell", name="req_1").wait_for()
        assert not scrolls_sideways(page)
