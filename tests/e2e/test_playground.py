"""The playground's tabs in a real browser, before the demo's real models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser import PHONE, WHY_SKIPPED, barriers, find_chromium, open_page, scrolls_sideways, start_browser

pytestmark = [pytest.mark.models, pytest.mark.skipif(find_chromium() is None, reason=WHY_SKIPPED)]

WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as running:
        started = start_browser(running)
        yield started
        started.close()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")


def test_a_chat_streams_its_answer_and_tells_its_speed(browser: Browser, demo_server: Any) -> None:
    with open_page(browser, demo_server.url) as (page, seen):
        ask(page, "Name the capital of France.")
        page.get_by_text("tokens/s").wait_for(timeout=WAIT_MS)
        assert "Paris" in page.locator(".said.model .words").inner_text()
        page.get_by_text("Copy as code").click()
        assert "curl -N" in page.locator(".code code").inner_text()
        page.get_by_role("button", name="Python").click()
        compile(page.locator(".code code").inner_text(), "copied", "exec")
        ask(page, "Are you sure?")
        page.get_by_text("of them cached").wait_for(timeout=WAIT_MS)
        seen.assert_none()


def test_stopping_an_answer_frees_its_place_in_the_batch(browser: Browser, demo_server: Any) -> None:
    with open_page(browser, demo_server.url) as (page, seen):
        page.get_by_label("Most tokens").fill("1500")
        ask(page, "Count from one to a thousand in words.")
        page.locator(".said.model .words p").first.wait_for(timeout=WAIT_MS)
        page.get_by_role("button", name="Stop").click()
        page.locator(".figures", has_text="stopped").wait_for()
        page.get_by_role("button", name="Send").wait_for()
        running = 1
        while running:  # pytest's own time limit ends it
            (chat,) = [m for m in httpx.get(f"{demo_server.url}/live").json()["models"] if m["name"] == "chat"]
            running = chat["replicas"][0]["num_running"]
        seen.assert_none()


def test_a_tool_call_is_shown_with_what_it_gave(browser: Browser, demo_server: Any) -> None:
    with open_page(browser, demo_server.url) as (page, seen):
        page.get_by_label("Tools").select_option("required")
        page.get_by_label("Most tokens").fill("60")
        ask(page, "What time is it?")
        page.locator(".said.tool code").first.wait_for(timeout=WAIT_MS)
        assert page.locator(".said.tool code").first.inner_text().startswith(("current_time(", "roll_die("))
        seen.assert_none()


def test_texts_become_a_map_that_tells_what_is_alike(browser: Browser, demo_server: Any) -> None:
    with open_page(browser, f"{demo_server.url}#embed") as (page, seen):
        page.get_by_label("Texts", exact=False).last.fill("A cat sleeps.\nInterest rates rose.\nThe kitten is napping.")
        page.get_by_role("button", name="Embed", exact=True).click()
        page.get_by_role("button", name="A cat sleeps.").focus(timeout=WAIT_MS)
        assert "The kitten is napping." in page.locator(".alike li").first.inner_text()
        assert barriers(page) == []
        seen.assert_none()


def test_errors_of_the_server_are_shown_as_it_words_them(browser: Browser, demo_server: Any) -> None:
    with open_page(browser, demo_server.url) as (page, _seen):
        page.get_by_label("Temperature").fill("9")
        ask(page, "Hello")
        page.get_by_role("alert").filter(has_text="temperature").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out_of_the_chat(browser: Browser, demo_server: Any, scheme: str) -> None:
    with open_page(browser, demo_server.url, color_scheme=scheme) as (page, _seen):
        page.get_by_label("Most tokens").fill("8")
        ask(page, "Hello")
        page.get_by_text("tokens/s").wait_for(timeout=WAIT_MS)
        assert barriers(page) == []


@pytest.mark.parametrize("tab", ["chat", "embed", "live"])
def test_a_phone_never_scrolls_sideways(browser: Browser, demo_server: Any, tab: str) -> None:
    with open_page(browser, f"{demo_server.url}#{tab}", **PHONE) as (page, _seen):
        page.locator(f"#panel-{tab} > *").first.wait_for()
        assert not scrolls_sideways(page)
