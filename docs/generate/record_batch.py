"""Records the running batch of a chat model under a few requests: ``python -m docs.generate.record_batch URL [MODEL]``."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

OUT = Path(__file__).parents[2] / "bench" / "results" / f"{time.strftime('%Y-%m-%d')}-live-batch.json"

PROMPTS = (
    ("Write a long story about a ship.", 90),
    ("Name three fruits.", 16),
    ("Name the capital of France.", 12),
    ("Explain how bread is made, step by step.", 70),
    ("Count from one to ten.", 30),
    ("Translate 'good morning' to Spanish.", 12),
    ("Write a short poem about rain.", 40),
    ("List the planets.", 50),
)
"""What is asked, and how many tokens the answer may have."""

EVERY_STEPS = 6
"""Steps between two requests, so that the picture is the same on slow machines."""

_PATIENCE_S = 60.0


def main() -> None:
    """Watches, asks, and writes every event of the model."""
    url, model = sys.argv[1].rstrip("/"), (sys.argv[2:] or ["chat"])[0]
    events: list[dict[str, Any]] = []
    done = threading.Event()
    watching = threading.Event()

    def watch() -> None:
        with urlopen(Request(f"{url}/live", headers={"accept": "text/event-stream"})) as stream:
            for line in stream:
                watching.set()
                if line.startswith(b"data: "):
                    events.extend(_events(json.loads(line[6:]), model))
                if done.is_set():
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    watching.wait()
    time.sleep(1.0)  # workers begin to tell when the first watcher has come
    asked = [threading.Thread(target=_ask, args=(url, model, *prompt)) for prompt in PROMPTS]
    for number, thread in enumerate(asked):
        until_s = time.monotonic() + _PATIENCE_S
        while _num_steps(events) < number * EVERY_STEPS and time.monotonic() < until_s:
            time.sleep(0.01)
        thread.start()
    for thread in asked:
        thread.join()
    time.sleep(1.0)
    done.set()
    watcher.join()
    OUT.write_text(json.dumps({"model": model, "events": events}) + "\n", encoding="utf-8")
    print(f"{len(events)} events in {OUT}")


def _num_steps(events: list[dict[str, Any]]) -> int:
    return sum(event["kind"] == "stepped" for event in events)


def _events(moment: dict[str, Any], model: str) -> list[dict[str, Any]]:
    found = [each for each in moment["models"] if each["name"] == model]
    return [event for each in found for replica in each["replicas"] for event in replica["events"]]


def _ask(url: str, model: str, prompt: str, max_tokens: int) -> None:
    body = {
        "model": model,
        "temperature": 0,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": prompt}],
    }
    data = json.dumps(body).encode()
    with urlopen(Request(f"{url}/v1/chat/completions", data, {"content-type": "application/json"})) as answer:
        answer.read()


if __name__ == "__main__":
    main()
