"""A gateway before two real servers, of which one is killed while it answers."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.conftest import demo_config
from tests.servers import DemoServer, start_server, stop_server

pytestmark = pytest.mark.models

NUM_STREAMS = 4
PROMPTS = [f"Write one sentence about the number {number} and the sea." for number in range(NUM_STREAMS)]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[DemoServer]]:
    """Two servers of the chat model in exact arithmetic."""

    def chat_only(data: dict[str, Any]) -> None:
        del data["models"]["embed"]

    started: list[DemoServer] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        started.append(start_server(demo_config(folder, chat_only)))
    yield started
    for server in started:
        stop_server(server)


@pytest.fixture
def gateway(servers: list[DemoServer], tmp_path: Path) -> Iterator[DemoServer]:
    folder = tmp_path / "gateway"
    folder.mkdir()
    config = folder / "gateway.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "server": {"port": 0},
                "replicas": [server.url for server in servers],
                "routing": {"policy": "round_robin"},
                "resume_streams": True,
            }
        )
    )
    started = start_server(config, command="gateway")
    yield started
    assert stop_server(started) == 0


def ask(url: str, prompt: str, *, stream: bool, on_text: threading.Event | None = None) -> str:
    """The text of one greedy answer; fails for anything but a whole answer without a word of error."""
    body: dict[str, Any] = {
        "model": "chat", "messages": [{"role": "user", "content": prompt}], "max_tokens": 32, "temperature": 0,
        "stream": stream,
    }  # fmt: skip
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=120.0) as response:
        if not stream:
            content = json.loads(response.read())
            assert response.status_code == 200, content
            text: str = content["choices"][0]["message"]["content"]
            return text
        assert response.status_code == 200
        found: list[str] = []
        lines: list[str] = []
        for line in response.iter_lines():
            lines.append(line)
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, lines
                found += [choice["delta"].get("content") or "" for choice in event["choices"]]
                if on_text is not None and len(found) > 3:
                    on_text.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"
        return "".join(found)


def test_no_client_sees_that_a_server_is_killed_in_mid_stream(gateway: DemoServer, servers: list[DemoServer]) -> None:
    with ThreadPoolExecutor(2 * NUM_STREAMS) as pool:
        alone = [pool.submit(ask, servers[1].url, prompt, stream=False) for prompt in PROMPTS]
        expected = [each.result() for each in alone]
        begun = [threading.Event() for _stream in PROMPTS]
        streams = [
            pool.submit(ask, gateway.url, prompt, stream=True, on_text=event)
            for prompt, event in zip(PROMPTS, begun, strict=True)
        ]
        wholes = [pool.submit(ask, gateway.url, prompt, stream=False) for prompt in PROMPTS[:2]]
        for event in begun:
            assert event.wait(120.0)
        assert not all(stream.done() for stream in streams)
        os.kill(servers[0].process.pid, signal.SIGKILL)
        assert [stream.result() for stream in streams] == expected
        assert [whole.result() for whole in wholes] == expected[:2]
        # The next requests don't even try it.
        assert ask(gateway.url, PROMPTS[0], stream=True) == expected[0]
    metrics = httpx.get(f"{gateway.url}/metrics").text
    assert 'sixfold:gateway_resumed_streams_total{model_name="chat",outcome="done"}' in metrics
    assert "diverged" not in metrics
    ready = httpx.get(f"{gateway.url}/ready").json()
    assert ready["replicas"] == {servers[0].url: "down", servers[1].url: "up"}
