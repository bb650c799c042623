"""Takes the pictures of the playground in docs/images from a running demo.

sixfold serve examples/demo.yaml
python -m tests.screenshots http://127.0.0.1:8000 [NAME ...]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser import PHONE, open_page, start_browser

FOLDER = Path(__file__).parents[1] / "docs" / "images"
WAIT_MS = 180_000
NUM_CLIENTS = 14
LOAD_S = 45.0
QUESTIONS = ("Name the capital of France.", "What is it known for? Answer in two sentences.")


def chat(page: Page) -> None:
    """Questions and their answers."""
    for number, question in enumerate(QUESTIONS, start=1):
        page.get_by_label("Your question").fill(question)
        page.keyboard.press("Enter")
        page.locator(".figures", has_text="tokens/s").nth(number - 1).wait_for(timeout=WAIT_MS)


def embed(page: Page) -> None:
    """The map of the sample texts."""
    page.get_by_role("button", name="Embed", exact=True).click()
    page.locator(".map .point").first.wait_for(timeout=WAIT_MS)


def draw(page: Page) -> None:
    """Two pictures."""
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator(".figures", has_text="2 pictures in").wait_for(timeout=WAIT_MS)


def speak_to(url: str, until_s: float, number: int) -> None:
    """One client: answers of many lengths, one after the other."""
    turn = number
    while time.monotonic() < until_s:
        turn += 5
        body = {
            "model": "chat",
            "messages": [{"role": "user", "content": f"Tell a story of the sea in {turn} words."}],
            "max_tokens": 12 + (turn * 37) % 120,
            "temperature": 0.7,
        }
        httpx.post(
            f"{url}/v1/chat/completions", json=body, headers={"x-request-id": f"ward-{number}-{turn}"}, timeout=120
        )
        httpx.post(
            f"{url}/v1/embeddings", json={"model": "embed", "input": [f"note {turn} of {number}"] * (1 + turn % 7)}
        )


def shoot(browser: Browser, url: str, *, tab: str, name: str, phone: bool = False, scheme: str = "light") -> None:
    """One picture."""
    options = {**(PHONE if phone else {}), "color_scheme": scheme, "device_scale_factor": 2 if phone else 1}
    with open_page(browser, f"{url}#{tab}", **options) as (page, seen):
        page.locator(f"#panel-{tab} > *").first.wait_for(timeout=WAIT_MS)
        if tab == "live":
            page.wait_for_timeout(LOAD_S * 700)
        else:
            {"chat": chat, "embed": embed, "draw": draw}[tab](page)
        page.screenshot(path=FOLDER / f"{name}.png")
        print(name, seen)


def main(url: str, wanted: Sequence[str]) -> None:
    """All of them, or those whose names are given."""
    plain = {
        "playground-chat": partial(shoot, tab="chat"),
        "playground-embed-dark": partial(shoot, tab="embed", scheme="dark"),
        "playground-draw": partial(shoot, tab="draw"),
        "playground-phone": partial(shoot, tab="chat", phone=True),
    }
    under_load = {
        "playground-live": partial(shoot, tab="live"),
        "playground-live-dark": partial(shoot, tab="live", scheme="dark"),
    }
    with sync_playwright() as playwright:
        browser = start_browser(playwright)
        for name, take in (plain | under_load).items():
            if wanted and name not in wanted:
                continue
            with ThreadPoolExecutor(NUM_CLIENTS) as clients:
                until_s = time.monotonic() + LOAD_S
                for number in range(NUM_CLIENTS if name in under_load else 0):
                    clients.submit(speak_to, url, until_s, number)
                take(browser, url, name=name)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2:])
