"""``sixfold up`` of a model with roles: prompts go to replicas of their own, of which there are more once prompts wait there."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest
import yaml

from tests.plugins.llm.conftest import write_model
from tests.servers import DemoServer, start_server, stop_server

_WAIT_S = 300.0  # on two cores that others use, too, four servers take their time
WORDS = "patient ward fever chart nurse night pulse dose blood scan rest water light door hand".split()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    folder = tmp_path_factory.mktemp("up")
    model = {
        "source": f"file:{write_model(folder / 'model', 'llama-long')}",
        "options": {"dtype": "float32", "kv_cache_bytes": 4 << 20},
        "device": "cpu",
    }
    # No prompt may wait, so that a second prefill replica is wanted as soon as any does.
    roles = {"max_replicas": 3, "ttft_s": 1e-6, "inter_token_s": 10.0, "window_s": 4.0}
    disaggregation = {"prefill_tokens_per_s": 100.0, "kv_bytes_per_token": 100.0, "min_prompt_tokens": 16}
    path = folder / "config.yaml"
    cluster = {"services": {"tiny": {"roles": roles}}, "gateway": {"disaggregation": disaggregation}}
    path.write_text(yaml.safe_dump({"models": {"tiny": model}, "server": {"port": 0}, "cluster": cluster}))
    server = start_server(path, command="up", timeout_s=_WAIT_S)
    yield server
    assert stop_server(server) == 0


def ask(http: httpx.Client, number: int) -> None:
    draw = random.Random(number)
    body = {
        "model": "tiny",
        "prompt": f"{number}: " + " ".join(draw.choices(WORDS, k=100)),
        "max_tokens": 4,
        "ignore_eos": True,
    }
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4


def decisions(http: httpx.Client) -> list[dict[str, Any]]:
    return [each for each in http.get("/decisions").json()["data"] if each["what"] == "replicas"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_prompts_that_wait_bring_a_second_prefill_replica_and_no_second_decode_replica(running: DemoServer) -> None:
    end_s = time.monotonic() + 2 * _WAIT_S
    with httpx.Client(base_url=running.url, timeout=_WAIT_S) as http, ThreadPoolExecutor(16) as pool:
        number = 0
        while "tiny-prefill: 2 of 2 replicas are up" not in running.log:
            assert time.monotonic() < end_s, running.log[-4000:]
            list(pool.map(partial(ask, http), range(number, number + 32)))
            number += 32
        found = decisions(http)
        assert [(each["source"], each["from"], each["to"]) for each in found] == [("tiny-prefill", 1, 2)]
        assert "prompt tokens a second keep" in found[0]["reason"]
        assert found[0]["objective"].endswith("1..2 replicas, 3 of both roles")
        split = [line for line in http.get("/metrics").text.splitlines() if 'outcome="split"' in line]
        assert float(split[0].rsplit(" ", 1)[1]) > 0
        ready = http.get("/ready").json()["replicas"]
        assert list(ready.values()) == ["up"] * 3
