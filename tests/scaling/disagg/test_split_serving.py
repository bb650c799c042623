"""Prompts computed by one server and answered by another: the same tokens, whichever of both dies on the way."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from sixfold.scaling.disagg.bodies import can_split, decode_body, handle_of, prefill_body
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.gateway.settings import GatewaySettings
from tests.plugins.llm.conftest import write_model
from tests.scaling.disagg.stopping_relay import StoppingRelay
from tests.scaling.gateway.scripted import run_gateway
from tests.servers import DemoServer, start_server, stop_server

PATH = "/v1/completions"
WORDS = "patient ward fever chart nurse night pulse dose blood scan rest water light door hand".split()
_WAIT_S = 30.0
_LEASE_S = 60.0  # every prompt here is taken: longer than a server takes that was never asked before


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "llama-long")


@pytest.fixture(scope="module")
def start(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, Any]], DemoServer]]:
    """Starts a server of the model with the given ``kv_transfer``; those that were not killed must end well."""
    started: list[DemoServer] = []

    def _start(transfer: dict[str, Any]) -> DemoServer:
        options: dict[str, Any] = {"dtype": "float32", "kv_cache_bytes": 4 << 20}
        if transfer:
            options["kv_transfer"] = transfer
        config = tmp_path_factory.mktemp("server") / "config.yaml"
        models = {"tiny": {"source": f"file:{source}", "options": options}}
        config.write_text(json.dumps({"models": models, "server": {"host": "127.0.0.1", "port": 0}}))
        started.append(start_server(config))
        return started[-1]

    yield _start
    for server in started:
        was_killed = server.process.poll() is not None
        assert stop_server(server) == (-signal.SIGKILL if was_killed else 0)


@pytest.fixture(scope="module")
def alone(start: Callable[[dict[str, Any]], DemoServer]) -> DemoServer:
    return start({})


@pytest.fixture(scope="module")
def prefill(start: Callable[[dict[str, Any]], DemoServer]) -> DemoServer:
    return start({"listen": "127.0.0.1:0", "lease_s": _LEASE_S})


@pytest.fixture(scope="module")
def decode(start: Callable[[dict[str, Any]], DemoServer]) -> DemoServer:
    return start({"peers": ["127.0.0.1"]})


def bodies(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests of mixed lengths, greedy and sampled, no two with the same beginning."""
    draw = random.Random(seed)
    return [
        {
            "model": "tiny",
            "prompt": f"{number}: " + " ".join(draw.choices(WORDS, k=draw.randint(8, 120))),
            "max_tokens": draw.randint(4, 24),
            "temperature": draw.choice([0, 1]),
            "seed": number,
            "ignore_eos": True,
        }
        for number in range(count)
    ]


def ask(server: DemoServer, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(server.url + PATH, json=body, timeout=60.0)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["text"]
    return text


def split(prefill: DemoServer, decode: DemoServer, body: dict[str, Any]) -> dict[str, Any]:
    assert can_split(PATH, body)
    return ask(decode, decode_body(body, handle_of(ask(prefill, prefill_body(body)))))


def metric(server: DemoServer, name: str) -> float:
    for line in httpx.get(f"{server.url}/metrics", timeout=10.0).text.splitlines():
        if line.startswith(f"sixfold:{name}{{"):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no sixfold:{name}")


def until(server: DemoServer, name: str, value: float) -> None:
    """Asks until a metric has a value."""
    end_s = time.monotonic() + _WAIT_S
    while metric(server, name) != value:
        assert time.monotonic() < end_s, f"{name} is {metric(server, name)}, not {value}"


def kill(server: DemoServer) -> None:
    """Ends a server and its workers at once, as the loss of their machine does."""
    pids = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    for pid in (server.process.pid, *map(int, pids)):
        os.kill(pid, signal.SIGKILL)
    server.process.wait(_WAIT_S)


def given_by(prefill: DemoServer, body: dict[str, Any]) -> dict[str, Any]:
    """What the server that computes a request's prompt gives to the one that answers."""
    given = handle_of(ask(prefill, prefill_body(body)))
    assert given is not None
    return dict(given)


def held_in_its_middle(given: dict[str, Any]) -> tuple[dict[str, Any], StoppingRelay]:
    """The same, by way of a relay that stands still after half of the bytes."""
    handle = given["handle"]
    _, host, port = handle["address"].split(":")
    relay = StoppingRelay(host, int(port), handle["num_bytes"] // 2)
    return {**given, "handle": {**handle, "address": f"tcp:127.0.0.1:{relay.port}"}}, relay


@pytest.mark.parametrize("count", [24, pytest.param(500, marks=pytest.mark.slow)])
def test_split_answers_are_those_of_one_server_and_memory_returns(
    count: int, alone: DemoServer, prefill: DemoServer, decode: DemoServer
) -> None:
    failures, asked = metric(decode, "kv_transfer_failures_total"), bodies(count, seed=count)
    with ThreadPoolExecutor(8) as pool:
        expected = list(pool.map(partial(ask, alone), asked))
        answers = list(pool.map(partial(split, prefill, decode), asked))
    assert [text_of(answer) for answer in answers] == [text_of(answer) for answer in expected]
    assert all(answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0 for answer in answers)
    assert metric(decode, "kv_transfer_failures_total") == failures
    until(prefill, "kv_transfer_held_blocks", 0.0)
    for server in (prefill, decode):
        until(server, "kv_blocks_used", 0.0)


async def test_the_gateway_splits_what_a_busy_server_would_have_to_compute(
    alone: DemoServer, prefill: DemoServer, decode: DemoServer
) -> None:
    asked = bodies(16, seed=5)
    settings = GatewaySettings.model_validate(
        {
            "server": {"port": 0},
            "replicas": [{"url": prefill.url, "role": "prefill"}, {"url": decode.url}],
            "disaggregation": {"prefill_tokens_per_s": 100.0, "kv_bytes_per_token": 100.0, "min_prompt_tokens": 16},
        }
    )
    async with run_gateway(Gateway(settings)) as gateway:
        answers = await asyncio.gather(*(gateway.ask_json(body) for body in asked))
        assert await gateway.metric("sixfold:gateway_split_prompts_total", outcome="split") > 0
        assert await gateway.metric("sixfold:gateway_split_prompts_total", outcome="failed") == 0
    expected = [await asyncio.to_thread(ask, alone, body) for body in asked]
    assert [text_of(answer) for answer in answers] == [text_of(answer) for answer in expected]


def test_a_prefill_server_that_dies_in_mid_transfer_costs_no_answer(
    alone: DemoServer, decode: DemoServer, start: Callable[[dict[str, Any]], DemoServer]
) -> None:
    dying, failures = start({"listen": "127.0.0.1:0"}), metric(decode, "kv_transfer_failures_total")
    (body,) = bodies(1, seed=77)
    held, relay = held_in_its_middle(given_by(dying, body))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, decode, decode_body(body, held))
        assert relay.is_holding.wait(_WAIT_S)
        kill(dying)
        relay.close()
        assert text_of(answer.result(_WAIT_S)) == text_of(ask(alone, body))
    assert metric(decode, "kv_transfer_failures_total") == failures + 1
    until(decode, "kv_blocks_used", 0.0)


def test_a_decode_server_that_dies_in_mid_transfer_leaves_the_blocks_for_another(
    alone: DemoServer, prefill: DemoServer, decode: DemoServer, start: Callable[[dict[str, Any]], DemoServer]
) -> None:
    dying = start({"peers": ["127.0.0.1"]})
    (body,) = bodies(1, seed=78)
    given = given_by(prefill, body)
    held, relay = held_in_its_middle(given)
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(httpx.post, dying.url + PATH, json=decode_body(body, held), timeout=60.0)
        assert relay.is_holding.wait(_WAIT_S)
        kill(dying)
        relay.close()
        assert isinstance(lost.exception(_WAIT_S), httpx.TransportError)
    answer = ask(decode, decode_body(body, given))
    assert text_of(answer) == text_of(ask(alone, body))
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    until(prefill, "kv_transfer_held_blocks", 0.0)
    until(prefill, "kv_blocks_used", 0.0)
