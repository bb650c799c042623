"""Long prompts over HTTP that two processes compute, while others chat, leave, and a process dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from sixfold.plugins.llm.generation import CompletionInput, SamplingParams
from tests.plugins.llm.conftest import Driver
from tests.servers import DemoServer, ranks_of, serving

OPTIONS = {"dtype": "float32", "kv_cache_bytes": 8 << 20, "parallel_prompt_tokens": 64, "prefix_cache": "off"}
LONG = [(7 * n * n + 3 * n) % 251 for n in range(3000)]
NUM_ANSWERED = 30
_WAIT_S = 240.0


@pytest.fixture(scope="module")
def server(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    root = tmp_path_factory.mktemp("parallel")
    entry = {"source": f"file:{model_folder('llama-long')}", "options": OPTIONS}
    models = {"divided": {**entry, "parallel": {"context": 2, "step_timeout_s": 60}}}
    with serving(root, models) as server:
        yield server


@pytest.fixture(scope="module")
def alone(model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]) -> Callable[[list[int]], str]:
    """What one process answers."""
    model = load_tiny(model_folder("llama-long"), **OPTIONS)

    def answer(prompt: list[int]) -> str:
        params = SamplingParams(max_tokens=NUM_ANSWERED, temperature=0, ignore_eos=True)
        (driven,) = Driver(model).run([CompletionInput(prompts=(tuple(prompt),), params=params)])
        return driven.texts[0]

    return answer


def complete(server: DemoServer, prompt: list[int]) -> httpx.Response:
    body = {"model": "divided", "prompt": prompt, "max_tokens": NUM_ANSWERED, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=_WAIT_S)


def text_of(response: httpx.Response) -> str:
    text: str = response.raise_for_status().json()["choices"][0]["text"]
    return text


def metric(server: DemoServer, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=_WAIT_S).text.splitlines()
    return sum(float(each.split()[-1]) for each in lines if each.startswith(f"sixfold:{name}{{"))


def until(is_so: Callable[[], Any]) -> None:
    """Returns when it is so."""
    end_s = time.monotonic() + _WAIT_S
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_others_chat_while_a_long_prompt_is_computed_and_all_answers_are_those_of_one_process(
    server: DemoServer, alone: Callable[[list[int]], str]
) -> None:
    prompts = [LONG, LONG[:5], LONG[100:1200], LONG[7:30], LONG[1:]]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = [pool.submit(complete, server, prompt) for prompt in prompts]
        found = [text_of(answer.result()) for answer in answers]
    assert found == [alone(prompt) for prompt in prompts]
    assert len(set(found)) == len(found)


def test_a_client_that_leaves_while_its_prompt_is_computed_leaves_no_blocks(
    server: DemoServer, alone: Callable[[list[int]], str]
) -> None:
    (rank,) = ranks_of(server)
    body = {"model": "divided", "prompt": LONG, "max_tokens": 8}
    os.kill(rank, signal.SIGSTOP)  # its prompt can't get done
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/completions", json=body, timeout=httpx.Timeout(30.0, read=1.0))
    finally:
        os.kill(rank, signal.SIGCONT)
    assert text_of(complete(server, LONG[:9])) == alone(LONG[:9])
    until(lambda: metric(server, "kv_blocks_used") == 0)
    assert ranks_of(server) == [rank]


def test_a_rank_that_dies_in_a_step_fails_its_requests_and_the_replica_comes_back(
    server: DemoServer, alone: Callable[[list[int]], str]
) -> None:
    (rank,) = ranks_of(server)
    answered: list[httpx.Response] = []
    os.kill(rank, signal.SIGSTOP)  # so that the step can't end before
    client = threading.Thread(target=lambda: answered.append(complete(server, LONG)))
    client.start()
    until(lambda: metric(server, "num_requests_running") > 0)
    os.kill(rank, signal.SIGKILL)
    client.join(_WAIT_S)
    assert not client.is_alive()
    assert answered[0].status_code == 503, answered[0].text
    assert "Retry" in answered[0].json()["error"]["message"]
    until(lambda: complete(server, LONG[:3]).status_code == 200)
    assert text_of(complete(server, LONG)) == alone(LONG)
    (successor,) = ranks_of(server)
    assert successor != rank
