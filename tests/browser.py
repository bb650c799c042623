"""Debian's Chromium under Playwright: found, started without a connection to anybody, and its pages watched for complaints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, cast
from urllib.parse import urljoin

from playwright.sync_api import Browser, Page, Playwright

WHY_SKIPPED = "no Chromium: install it (apt-get install chromium), or name one in SIXFOLD_CHROMIUM"
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESK: dict[str, Any] = {"viewport": {"width": 1280, "height": 860}}

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without most of these Chromium asks its maker for updates at every start; the last three are for sound.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)


def find_chromium() -> str | None:
    """The browser of this machine; ``SIXFOLD_CHROMIUM`` names another."""
    return os.environ.get("SIXFOLD_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


def start_browser(playwright: Playwright) -> Browser:
    """A headless one."""
    return playwright.chromium.launch(executable_path=find_chromium(), headless=True, args=list(_FLAGS))


@dataclass
class Complaints:
    """What went wrong on a page, and what it asked for from others than its server."""

    errors: list[str] = field(default_factory=list[str])
    elsewhere: list[str] = field(default_factory=list[str])

    def assert_none(self) -> None:
        """Neither."""
        assert (self.errors, self.elsewhere) == ([], [])


@contextmanager
def open_page(browser: Browser, url: str, **options: Any) -> Generator[tuple[Page, Complaints]]:
    """A page in a context of its own, with the tab that the address names.

    Args:
        browser: Running.
        url: Of the page.
        options: Of the context, such as ``color_scheme``.
    """
    context = browser.new_context(**{**DESK, **options})
    page = context.new_page()
    seen = Complaints()
    origin = urljoin(url, "/")
    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))

    def note_request(request: Any) -> None:
        if not request.url.startswith((origin, "blob:", "data:")):
            seen.elsewhere.append(request.url)

    page.on("request", note_request)
    page.goto(url)
    try:
        yield page, seen
    finally:
        context.close()


def wait_until(page: Page, condition: str) -> None:
    """Asks the page until an expression holds; pytest's own time limit ends it. Playwright's waiting needs `eval`, which the
    page's policy forbids."""
    while not page.evaluate(condition):
        pass


def barriers(page: Page) -> list[str]:
    """What axe finds that keeps people out: rules that are broken seriously, each with the elements."""
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = cast("dict[str, Any]", page.evaluate("axe.run()"))
    return [
        f"{rule['id']}: {node['html'][:120]}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def scrolls_sideways(page: Page) -> bool:
    """Whether the page is wider than the screen."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
