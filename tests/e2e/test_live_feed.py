"""The live feed of real worker processes: the path from a step to a watcher, also past the death of a worker."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx


def messages(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def told_of(response_messages: Iterator[Any], url: str, request_id: str) -> list[Any]:
    """Sends a request; the events that the feed tells until its sequence has left."""
    answer = httpx.post(
        f"{url}/v1/reverse", json={"model": "mirror", "text": "secret"}, headers={"x-request-id": request_id}
    )
    assert answer.status_code == 200
    events: list[Any] = []
    for message in response_messages:
        assert "secret" not in json.dumps(message)
        for replica in message["models"][0]["replicas"]:
            events += replica["events"]
        if any(event["kind"] == "left" for event in events):
            return events
    raise AssertionError("the feed ended")


def child_of(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return int(file.read().split()[0])


def test_a_request_is_seen_to_join_to_be_stepped_and_to_leave(reverse_server: Any) -> None:
    url = reverse_server.url
    with httpx.stream("GET", f"{url}/live", headers={"accept": "text/event-stream"}, timeout=60) as response:
        feed = messages(response)
        next(feed)
        first, *steps, last = told_of(feed, url, "watched-1")
        assert (first["kind"], first["request_id"]) == ("joined", "watched-1")
        assert {step["kind"] for step in steps} == {"stepped"}
        assert all(row[0] == first["sequence"] for step in steps for row in step["rows"])
        assert (last["kind"], last["reason"], last["sequence"]) == ("left", "done", first["sequence"])


def test_the_feed_goes_on_with_the_worker_that_takes_a_dead_ones_place(reverse_server: Any) -> None:
    url = reverse_server.url
    with httpx.stream("GET", f"{url}/live", headers={"accept": "text/event-stream"}, timeout=60) as response:
        feed = messages(response)
        next(feed)
        os.kill(child_of(reverse_server.process.pid), signal.SIGKILL)
        while next(feed)["models"][0]["replicas"]:
            pass
        while not next(feed)["models"][0]["replicas"]:
            pass
        first = told_of(feed, url, "watched-2")[0]
        assert (first["kind"], first["request_id"]) == ("joined", "watched-2")
