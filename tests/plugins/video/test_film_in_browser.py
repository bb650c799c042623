"""The tab for clips in a real browser, before answers that a test gives: it goes on looking, and gives memory back."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, sync_playwright

from tests.browser import WHY_SKIPPED, find_chromium, open_page, start_browser, wait_until
from tests.core.serving.fake_replica import FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread
from tests.core.serving.test_playground import TabbedAPI

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=WHY_SKIPPED)

FILM = Path(__file__).parents[3] / "plugins" / "video" / "playground" / "film.js"
JOB = {"id": "video_1", "status": "completed", "progress": 100, "prompt": "a red ball", "size": "64x64", "seconds": "1"}
COUNT_BLOBS = """() => {
  window.blobs = 0;
  const make = URL.createObjectURL, free = URL.revokeObjectURL;
  URL.createObjectURL = (blob) => { window.blobs += 1; return make.call(URL, blob); };
  URL.revokeObjectURL = (url) => { window.blobs -= 1; free.call(URL, url); };
}"""


def answer(page: Page) -> None:
    """The first look fails, later ones find a clip."""
    looks = iter([500])

    def videos(route: Route) -> None:
        status = next(looks, 200)
        route.fulfill(status=status, json={"error": {"message": "away"}} if status == 500 else {"data": [JOB]})

    page.route("**/v1/videos?*", videos)
    page.route("**/v1/videos/video_1/content", lambda route: route.fulfill(body="clip", content_type="video/mp4"))
    page.route("**/v1/videos/video_1", lambda route: route.fulfill(json={}))


def test_a_look_that_failed_is_not_the_last_and_a_removed_clip_frees_its_memory() -> None:
    api = TabbedAPI()
    api.script = FILM
    with (
        sync_playwright() as running,
        ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), apis=[api]) as server,
        open_page(start_browser(running), f"{server.url}#live") as (page, _seen),
    ):
        answer(page)
        page.evaluate(COUNT_BLOBS)
        page.get_by_role("tab", name="Echo").click()
        page.get_by_role("alert").filter(has_text="away").wait_for()
        page.locator("video").wait_for()
        assert page.get_by_role("alert").filter(has_text="away").count() == 0
        assert page.evaluate("blobs") == 1
        page.get_by_role("button", name="Remove").click()
        wait_until(page, "blobs === 0")
