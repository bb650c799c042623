"""The chat's tab in a real browser, before a stream that a test writes piece by piece: what the next question carries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.browser import WHY_SKIPPED, find_chromium, open_page, start_browser, wait_until
from tests.core.serving.fake_replica import FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread
from tests.core.serving.test_playground import TabbedAPI

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=WHY_SKIPPED)

CHAT = Path(__file__).parents[3] / "plugins" / "llm" / "playground" / "chat.js"
BY_HAND = """() => {
  const real = window.fetch;
  window.asked = [];
  window.fetch = (url, options) => {
    if (!String(url).endsWith("v1/chat/completions")) return real(url, options);
    let stream;
    const body = new ReadableStream({ start(controller) { stream = controller; } });
    const write = (text) => stream.enqueue(new TextEncoder().encode(`data: ${text}\\n\\n`));
    options.signal.addEventListener("abort", () => stream.error(new DOMException("left", "AbortError")));
    window.say = (delta, finish_reason = null) => write(JSON.stringify({ choices: [{ delta, finish_reason }] }));
    window.end = () => { write("[DONE]"); stream.close(); };
    window.asked.push(JSON.parse(options.body));
    return Promise.resolve(new Response(body));
  };
}"""
"""Answers the page's questions with what ``say`` is given, until ``end``."""
CALL = {"index": 0, "id": "call_1", "function": {"name": "current_time", "arguments": '{"a'}}


@pytest.fixture
def page() -> Iterator[Page]:
    api = TabbedAPI()
    api.script = CHAT
    with (
        sync_playwright() as running,
        ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), apis=[api]) as server,
        open_page(start_browser(running), server.url) as (page, _seen),
    ):
        page.get_by_label("Your question").wait_for()
        page.evaluate(BY_HAND)
        yield page


def ask(page: Page, text: str, number: int) -> list[Any]:
    """Sends a question; the messages that went with it."""
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")
    wait_until(page, f"window.asked.length === {number}")
    messages: list[Any] = page.evaluate("window.asked.at(-1).messages")
    return messages


def test_a_new_conversation_has_nothing_of_the_answer_that_was_still_coming(page: Page) -> None:
    ask(page, "first", 1)
    page.evaluate("say({ content: 'old words' })")
    page.get_by_text("old words").wait_for()
    page.get_by_role("button", name="New conversation").click()
    assert ask(page, "second", 2) == [{"role": "user", "content": "second"}]
    page.get_by_role("button", name="Stop").wait_for()
    page.evaluate("say({ content: 'new words' }, 'stop'); end()")
    page.get_by_role("button", name="Send").wait_for()
    assert [message["content"] for message in ask(page, "third", 3)] == ["second", "new words", "third"]


def test_half_a_call_of_a_tool_that_was_stopped_is_not_carried_on(page: Page) -> None:
    ask(page, "first", 1)
    page.evaluate("call => say({ content: 'let me see', tool_calls: [call] })", CALL)
    page.get_by_text("let me see").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator(".figures", has_text="stopped").wait_for()
    page.get_by_role("button", name="Send").wait_for()
    messages = ask(page, "second", 2)
    assert messages[1] == {"role": "assistant", "content": "let me see"}
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]


def test_a_whole_call_is_carried_on_with_its_result(page: Page) -> None:
    ask(page, "what time is it", 1)
    page.evaluate(
        "call => say({ tool_calls: [call] })", CALL | {"function": {"name": "current_time", "arguments": "{}"}}
    )
    page.evaluate("say({}, 'tool_calls'); end()")
    wait_until(page, "window.asked.length === 2")
    messages = page.evaluate("window.asked.at(-1).messages")
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"] == "call_1"
