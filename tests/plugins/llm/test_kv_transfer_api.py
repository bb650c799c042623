"""Two servers share a request: one computes the prompt, the other answers; over HTTP as a router would ask them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import DemoServer, start_server, stop_server

MESSAGES = [{"role": "user", "content": "Which of the two servers has computed this, and which one answers?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "A prompt of more than one block, which is computed once and answered elsewhere."},
}


@pytest.fixture(scope="module")
def servers(
    model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DemoServer, DemoServer]]:
    """The one that computes prompts, and the one that answers."""
    started: list[DemoServer] = []
    for transfer in ({"listen": "shm"}, {"peers": ["shm"]}):
        options = {"dtype": "float32", "kv_cache_bytes": 1 << 20, "kv_transfer": transfer}
        plain = {"dtype": "float32", "kv_cache_bytes": 1 << 20}
        source = f"file:{model_folder('llama')}"
        models: dict[str, Any] = {"tiny": {"source": source, "options": options}}
        if "listen" in transfer:
            models["plain"] = {"source": source, "options": plain}
        config = tmp_path_factory.mktemp("server") / "config.yaml"
        config.write_text(json.dumps({"models": models, "server": {"host": "127.0.0.1", "port": 0}}))
        started.append(start_server(config))
    yield started[0], started[1]
    assert [stop_server(server) for server in started] == [0, 0]


def post(server: DemoServer, path: str, transfer: dict[str, Any] | None = None, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "max_tokens": 16, "seed": 4, "ignore_eos": True} | BODIES[path] | fields
    if transfer is not None:
        body["kv_transfer_params"] = transfer
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


def text_of(answer: dict[str, Any]) -> str:
    choice = answer["choices"][0]
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text


@pytest.mark.parametrize("path", BODIES)
def test_the_handle_of_one_answer_gives_another_server_the_prompt(
    path: str, servers: tuple[DemoServer, DemoServer]
) -> None:
    prefill, decode = servers
    expected = text_of(post(prefill, path, model="plain").json())
    transfer = post(prefill, path, {"do_remote_decode": True}, max_tokens=1).json()["kv_transfer_params"]
    answer = post(decode, path, transfer).json()
    assert text_of(answer) == expected
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == (answer["usage"]["prompt_tokens"] - 1) // 16 * 16 > 0
    assert "kv_transfer_params" not in answer
    # The lease has ended; the answer is the same, and computed from what is still here.
    assert text_of(post(decode, path, transfer).json()) == expected


def test_a_handle_that_leads_nowhere_costs_no_request(servers: tuple[DemoServer, DemoServer]) -> None:
    prefill, decode = servers
    path, fields = "/v1/completions", {"prompt": "Another prompt that is long enough for a block or two of the cache."}
    transfer = post(prefill, path, {"do_remote_decode": True}, **fields).json()["kv_transfer_params"]
    transfer["handle"]["address"] = "tcp:127.0.0.1:1"
    answer = post(decode, path, transfer, **fields)
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert "options.kv_transfer.peers" in decode.log


def test_what_can_not_be_honoured_is_refused_by_name(servers: tuple[DemoServer, DemoServer]) -> None:
    prefill, decode = servers
    path = "/v1/completions"
    refused = [
        post(prefill, path, {"do_remote_decode": True}, stream=True),
        post(prefill, path, {"do_remote_decode": True}, prompt=["one", "two"]),
        post(prefill, path, {"do_remote_decode": True}, model="plain"),
        post(decode, path, {"handle": {"address": "shm:0"}}),
        post(decode, path, {"remote_host": "10.0.0.1"}),
    ]
    assert [response.status_code for response in refused] == [400] * 5
    assert all(response.json()["error"]["param"].startswith("kv_transfer_params") for response in refused)
