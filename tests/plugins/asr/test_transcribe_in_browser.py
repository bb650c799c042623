"""The tab for recordings in a real browser with a microphone that is none: nothing listens that nobody stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.browser import WHY_SKIPPED, find_chromium, open_page, start_browser, wait_until
from tests.core.serving.fake_replica import FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread
from tests.core.serving.test_playground import TabbedAPI

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=WHY_SKIPPED)

TRANSCRIBE = Path(__file__).parents[3] / "plugins" / "asr" / "playground" / "transcribe.js"
SLOW_TO_ALLOW = """() => {
  const media = navigator.mediaDevices;
  const real = media.getUserMedia.bind(media);
  window.tracks = [];
  const allowed = new Promise((resolve) => { window.allow = resolve; });
  media.getUserMedia = async (wanted) => {
    await allowed;
    const stream = await real(wanted);
    window.tracks.push(...stream.getTracks());
    return stream;
  };
}"""
SOUNDLESS = """() => {
  window.MediaRecorder = class {
    state = "inactive";
    start() { this.state = "recording"; }
    stop() {
      this.state = "inactive";
      this.ondataavailable({ data: new Blob([]) });
      this.onstop();
    }
  };
}"""
LISTENING = "window.tracks.filter((track) => track.readyState === 'live').length"


@pytest.fixture
def page() -> Iterator[Page]:
    api = TabbedAPI()
    api.script = TRANSCRIBE
    with (
        sync_playwright() as running,
        ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), apis=[api]) as server,
        open_page(start_browser(running), server.url) as (page, _seen),
    ):
        page.get_by_role("button", name="Record", exact=True).wait_for()
        page.evaluate(SLOW_TO_ALLOW)
        yield page


def test_a_double_click_records_once_and_stopping_ends_it(page: Page) -> None:
    page.evaluate(
        "() => { for (let n = 0; n < 2; n += 1) document.querySelector('.drop button + button').click(); allow(); }"
    )
    page.get_by_role("button", name="Stop recording").click()
    page.get_by_role("button", name="Record", exact=True).wait_for()
    wait_until(page, f"window.tracks.length === 1 && {LISTENING} === 0")


def test_leaving_the_tab_ends_the_recording(page: Page) -> None:
    page.get_by_role("button", name="Record", exact=True).click()
    page.evaluate("allow()")
    page.get_by_role("button", name="Stop recording").wait_for()
    page.get_by_text("Recording: ").wait_for()
    page.get_by_role("tab", name="Live").click()
    wait_until(page, f"{LISTENING} === 0")
    page.get_by_role("tab", name="Echo").click()
    page.get_by_text("recording.wav").wait_for()


def test_a_recording_that_ended_before_any_sound_is_told_and_another_can_be_made(page: Page) -> None:
    page.evaluate(SOUNDLESS)
    page.get_by_role("button", name="Record", exact=True).click()
    page.evaluate("allow()")
    page.get_by_role("button", name="Stop recording").click()
    page.get_by_text("Nothing was recorded").wait_for()
    page.get_by_text("Drop a recording here").wait_for()
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("button", name="Stop recording").wait_for()
    page.get_by_text("Nothing was recorded").wait_for(state="hidden")


def test_a_tab_that_was_left_before_the_microphone_was_allowed_does_not_listen(page: Page) -> None:
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("tab", name="Live").click()
    page.evaluate("allow()")
    wait_until(page, f"window.tracks.length === 1 && {LISTENING} === 0")
