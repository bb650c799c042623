"""Answers over a prefix that was computed before are those without, and usage and metrics say what was reused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI

from sixfold.core.batching.model import Granted
from sixfold.core.messages import Request
from sixfold.plugins.llm import step_launcher
from sixfold.plugins.llm.generation import CompletionInput, SamplingParams
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.sampler import begin_sample
from tests.servers import DemoServer, start_server, stop_server

Run = Callable[..., list[Any]]
TEXT = tuple((7 * n * n + 3 * n) % 251 for n in range(150))


def completion(
    prompt: tuple[int, ...], num_choices: int = 1, salt: str | None = None, **params: Any
) -> CompletionInput:
    fields: dict[str, Any] = {"max_tokens": 10, "temperature": 0, "ignore_eos": True, "num_top_logprobs": 0} | params
    return CompletionInput(prompts=(prompt,), params=SamplingParams(**fields), num_choices=num_choices, cache_salt=salt)


def raw_tokens(driven: Any, choice: int = 0) -> list[bytes]:
    return [token.chosen.raw for token in driven.generation.choices[choice].logprobs]


def num_cached(driven: Any) -> int:
    return int(driven.finish.usage.counts["cached_tokens"])


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral-sliding", "gemma3", "gpt2", "phi3"])
def test_a_found_prefix_changes_no_token(
    name: str, model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Run
) -> None:
    model = load_tiny(model_folder(name))
    without = load_tiny(model_folder(name), prefix_cache="off", speculation={"method": "off"})
    inputs = [completion(TEXT[:n]) for n in (20, 47, 48, 49, 90, 150)]
    expected = [raw_tokens(d) for d in run(without, inputs)]
    assert [num_cached(d) for d in run(without, inputs)] == [0] * 6
    one_by_one = [run(model, [item])[0] for item in inputs]
    assert [raw_tokens(d) for d in one_by_one] == expected
    assert [num_cached(d) for d in one_by_one] == [0, 16, 32, 48, 48, 80]
    for seed in (1, 2):  # chunks, company and preemption
        again = run(model, inputs, seed=seed)
        assert [raw_tokens(d) for d in again] == expected
        assert [num_cached(d) for d in again] == [16, 32, 32, 48, 80, 144]


def test_the_next_turn_finds_prompt_and_answer_of_the_last(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Run
) -> None:
    model = load_tiny(model_folder("llama"))
    request: Request[Any] = Request(request_id="r", input=completion(TEXT[:20], max_tokens=30), arrived_s=0.0)
    (sequence,) = model.prepare(request, model.split(request)[0])
    while sequence.finish_reason is None:
        model.reserve(sequence, model.cost(sequence).units)
        model.step([Granted(sequence, 100)])
    model.release(sequence)
    (turn,) = run(model, [completion((*sequence.token_ids, 1, 2, 3))])
    assert num_cached(turn) == 48


def test_what_a_long_prompt_has_computed_is_found_before_its_end(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]
) -> None:
    model = load_tiny(model_folder("llama"))
    request: Request[Any] = Request(request_id="r", input=completion(TEXT, num_choices=2), arrived_s=0.0)
    first, second = model.prepare(request, model.split(request)[0])
    assert model.reserve(first, 70) == 70
    model.step([Granted(first, 70)])
    assert model.cost(second).units == len(TEXT) - 64
    model.release(first)
    model.release(second)


def test_the_choices_of_a_request_compute_its_prompt_once(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Run
) -> None:
    model = load_tiny(model_folder("llama"))
    item = completion(TEXT[:70], num_choices=4, seed=3, temperature=1.0)
    (together,) = run(model, [item])
    # 70 tokens once, and for each further choice what is behind the last full block
    assert model.stats()["prompt_tokens_total"] == 70 + 3 * (70 - 64)
    assert together.finish.usage.counts["prompt_tokens"] == 70
    assert num_cached(together) == 0
    (again,) = run(load_tiny(model_folder("llama"), prefix_cache="off"), [item])
    assert [raw_tokens(together, n) for n in range(4)] == [raw_tokens(again, n) for n in range(4)]


def test_a_failed_step_of_choices_that_share_is_repeated_in_parts(
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    item = completion(TEXT[:70], num_choices=3, seed=3, temperature=1.0)
    (expected,) = run(load_tiny(model_folder("llama")), [item])
    model: TransformersModel = load_tiny(model_folder("llama"), speculation={"method": "off"})
    real, step = begin_sample, model.step

    def alone_only(logits: torch.Tensor, rows: Any, masks: Any, unknown: Any) -> Any:
        if len(rows) > 1:
            raise RuntimeError("too many")
        return real(logits, rows, masks, unknown)

    def bisect(batch: Any) -> Any:
        try:
            return step(batch)
        except RuntimeError:
            middle = len(batch) // 2
            return [*bisect(batch[:middle]), *bisect(batch[middle:])]

    monkeypatch.setattr(step_launcher, "begin_sample", alone_only)
    monkeypatch.setattr(model, "step", bisect)
    (got,) = run(model, [item])
    assert [raw_tokens(got, n) for n in range(3)] == [raw_tokens(expected, n) for n in range(3)]


def test_keys_and_salts_keep_prefixes_apart(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Run
) -> None:
    model = load_tiny(model_folder("llama"), prefix_cache="per_key")

    def found_by(tenant: str, salt: str | None) -> int:
        request: Request[Any] = Request(
            request_id="r", input=completion(TEXT[:40], salt=salt), tenant=tenant, arrived_s=0.0
        )
        (sequence,) = model.prepare(request, model.split(request)[0])
        found: int = sequence.num_uncomputed - model.cost(sequence).units
        return found

    run(model, [completion(TEXT[:40])])
    assert found_by("anonymous", None) == 32
    assert found_by("anonymous", "salt") == 0
    assert found_by("ann", None) == 0


def test_a_shortage_of_blocks_costs_cached_ones_first_and_no_answer(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Run, driver: type[Any]
) -> None:
    wide = load_tiny(model_folder("llama"), prefix_cache="off")
    narrow = load_tiny(model_folder("llama"), kv_cache_bytes=60_000, block_size_tokens=4)
    inputs = [completion((*TEXT[: 4 * (n % 4)], n, *TEXT[:n]), max_tokens=12) for n in range(30)]
    for seed in (1, 2):
        crowded = driver(narrow, seed)
        assert [raw_tokens(d) for d in crowded.run(inputs)] == [raw_tokens(d) for d in run(wide, inputs)]
    assert narrow.stats()["prefix_cache_hits_total"] > 100


@pytest.fixture(scope="module")
def server(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    folder = tmp_path_factory.mktemp("server")
    options = {"dtype": "float32", "kv_cache_bytes": 1 << 20}
    models = {"tiny": {"source": f"file:{model_folder('llama')}", "options": options}}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"models": models, "server": {"host": "127.0.0.1", "port": 0}}))
    started = start_server(config)
    yield started
    assert stop_server(started) == 0


def test_usage_over_http_tells_the_cached_tokens_on_both_endpoints_and_in_streams(server: DemoServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        cached: list[int | None] = []
        for _ in range(2):
            completed = client.completions.create(
                model="tiny", prompt=list(TEXT[:100]), max_tokens=3, extra_body={"cache_salt": "x"}
            )
            assert completed.usage is not None
            assert completed.usage.prompt_tokens_details is not None
            cached.append(completed.usage.prompt_tokens_details.cached_tokens)
        messages: list[Any] = [{"role": "user", "content": "How many tokens of this were computed before?"}]
        num_prompt = 0
        for _ in range(2):
            chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=3)
            assert chat.usage is not None
            assert chat.usage.prompt_tokens_details is not None
            cached.append(chat.usage.prompt_tokens_details.cached_tokens)
            num_prompt = chat.usage.prompt_tokens
        *_, last = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=3, stream=True, stream_options={"include_usage": True}
        )
        assert last.usage is not None
        assert last.usage.prompt_tokens_details is not None
        cached.append(last.usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == 0
    assert cached[1] == 96
    assert cached[2] == 0
    assert cached[3] == cached[4] == (num_prompt - 1) // 16 * 16 > 0
    wanted = {"queries": 200 + 3 * num_prompt, "hits": 96 + 2 * (cached[3] or 0)}
    until_s = time.monotonic() + 30  # the server reads them from the replica every now and then
    while (found := prefix_metrics(server.url)) != wanted and time.monotonic() < until_s:
        pass
    assert found == wanted


def prefix_metrics(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return {
        kind: float(line.rsplit(" ", 1)[1])
        for kind in ("queries", "hits")
        for line in lines
        if line.startswith(f"sixfold:prefix_cache_{kind}_total{{")
    }
