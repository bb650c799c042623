"""Debian's Chromium under Playwright: found, started without a connection to anybody, and its pages watched for complaints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page, Playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without these Chromium asks its maker for updates at every start.
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
    """What went wrong on a page, and what it asked for elsewhere."""

    errors: list[str] = field(default_factory=list[str])
    elsewhere: list[str] = field(default_factory=list[str])


@contextmanager
def open_page(browser: Browser, url: str, **context: Any) -> Iterator[tuple[Page, Complaints]]:
    """A page in a context of its own."""
    opened = browser.new_context(**context)
    page = opened.new_page()
    seen = Complaints()
    origin = "/".join(url.split("/")[:3]) + "/"
    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))

    def on_request(request: Any) -> None:
        if not request.url.startswith((origin, "blob:", "data:")):
            seen.elsewhere.append(request.url)

    page.on("request", on_request)
    page.goto(url)
    try:
        yield page, seen
    finally:
        opened.close()
