"""The main promise: the official client chats and embeds with real models through one server."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

pytestmark = pytest.mark.models

TEXTS = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The stock market fell sharply today.",
    "Shares dropped on Wall Street.",
    "naïve café 你好 🙂 " * 20,
    "a",
]
CAPITAL = [{"role": "user", "content": "Name the capital of France."}]


@pytest.fixture
def client(demo_server: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0, timeout=120.0) as client:
        yield client


@pytest.fixture
async def async_client(demo_server: Any) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0, timeout=300.0) as client:
        yield client


def metric(url: str, name: str, model: str) -> float:
    """One sample of /metrics."""
    text = httpx.get(f"{url}/metrics").text
    for line in text.splitlines():
        if line.startswith(f"sixfold:{name}{{") and f'model_name="{model}"' in line:
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no sixfold:{name} of {model} in\n{text}")


async def until_metric(url: str, name: str, model: str, value: float) -> None:
    """Asks until a metric has a value."""
    async with asyncio.timeout(30.0), httpx.AsyncClient() as http:
        while True:
            text = (await http.get(f"{url}/metrics")).text
            lines = [line for line in text.splitlines() if line.startswith(f"sixfold:{name}{{")]
            if any(f'model_name="{model}"' in line and float(line.rsplit(" ", 1)[1]) == value for line in lines):
                return


def test_the_chat_model_knows_the_capital_of_france(client: Any) -> None:
    answer = client.chat.completions.create(model="chat", messages=CAPITAL, temperature=0, max_tokens=20)
    assert answer.choices[0].message.content is not None
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_a_streamed_chat_says_the_same(client: Any) -> None:
    whole = client.chat.completions.create(model="chat", messages=CAPITAL, temperature=0, max_tokens=20)
    chunks = list(
        client.chat.completions.create(
            model="chat",
            messages=CAPITAL,
            temperature=0,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert "Paris" in text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_embeddings_equal_sentence_transformers(client: Any, embedding_model_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(embedding_model_path), device="cpu")
    reference = model.encode(TEXTS)
    got = client.embeddings.create(model="embed", input=TEXTS)
    ours = np.array([item.embedding for item in sorted(got.data, key=lambda item: item.index)])
    ours_similarity = ours @ ours.T / np.outer(np.linalg.norm(ours, axis=1), np.linalg.norm(ours, axis=1))
    norms = np.linalg.norm(reference, axis=1)
    np.testing.assert_allclose(ours_similarity, reference @ reference.T / np.outer(norms, norms), atol=1e-5)
    np.testing.assert_allclose(ours, reference, atol=1e-5)


def test_embeddings_alone_equal_those_in_a_batch(client: Any) -> None:
    together = client.embeddings.create(model="embed", input=TEXTS).data
    alone = [client.embeddings.create(model="embed", input=text).data[0] for text in TEXTS]
    np.testing.assert_allclose([item.embedding for item in together], [item.embedding for item in alone], atol=1e-5)


def test_base64_and_float_are_the_same_numbers(demo_server: Any) -> None:
    def ask(encoding: str) -> Any:
        body = {"model": "embed", "input": TEXTS[:2], "encoding_format": encoding}
        return httpx.post(f"{demo_server.url}/v1/embeddings", json=body).raise_for_status().json()["data"]

    floats = [item["embedding"] for item in ask("float")]
    decoded = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in ask("base64")]
    np.testing.assert_array_equal(np.array(floats, dtype=np.float32), decoded)


async def test_64_chats_share_one_batch_and_each_equals_itself_alone(demo_server: Any, async_client: Any) -> None:
    async def chat(index: int) -> str:
        answer = await async_client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": f"Count from {index} to {index + 3} and say something about it."}],
            temperature=0,
            max_tokens=48 + index % 5,  # long enough for the last to come before the first leaves
            extra_body={"ignore_eos": True},
        )
        return answer.choices[0].message.content or ""

    together = await asyncio.gather(*(chat(index) for index in range(64)))
    assert metric(demo_server.url, "max_batch_sequences", "chat") >= 64
    for index in (0, 7, 31, 63):
        assert await chat(index) == together[index]


async def test_killing_half_of_the_clients_returns_every_kv_block(demo_server: Any, async_client: Any) -> None:
    async def stream(index: int, stay: bool) -> int:
        """The completion tokens of a client that stays; 0 for one that leaves after its third chunk."""
        body = {
            "model": "chat",
            "messages": [{"role": "user", "content": f"Tell me story number {index}."}],
            "max_tokens": 40 if stay else 4000,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        num_chunks = 0
        usage: dict[str, int] = {}
        async with (
            httpx.AsyncClient(timeout=300.0) as http,
            http.stream("POST", f"{demo_server.url}/v1/chat/completions", json=body) as response,
        ):
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                num_chunks += 1
                usage = json.loads(line.removeprefix("data: ")).get("usage") or usage
                if not stay and num_chunks == 3:
                    break
        return usage.get("completion_tokens", 0)

    counts = await asyncio.gather(*(stream(index, stay=index % 2 == 0) for index in range(32)))
    assert counts == [40, 0] * 16  # chunks can't be counted: a slow reader gets the tokens of several steps in one
    await until_metric(demo_server.url, "kv_blocks_used", "chat", 0.0)
    await until_metric(demo_server.url, "num_requests_running", "chat", 0.0)


async def test_a_client_that_leaves_before_its_answer_frees_its_slot(demo_server: Any) -> None:
    body = {"model": "chat", "messages": CAPITAL, "max_tokens": 4000, "ignore_eos": True}
    async with httpx.AsyncClient() as http:
        request = asyncio.create_task(http.post(f"{demo_server.url}/v1/chat/completions", json=body, timeout=300.0))
        await until_metric(demo_server.url, "num_requests_running", "chat", 1.0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await until_metric(demo_server.url, "kv_blocks_used", "chat", 0.0)


def test_models_are_listed_with_their_aliases(client: Any) -> None:
    ids = {model.id for model in client.models.list()}
    assert {"chat", "SmolLM2-135M-Instruct", "embed", "all-MiniLM-L6-v2"} <= ids


def test_an_alias_is_echoed(client: Any) -> None:
    assert client.embeddings.create(model="all-MiniLM-L6-v2", input="x").model == "all-MiniLM-L6-v2"


def test_an_unknown_model_is_a_404(client: Any) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=CAPITAL)
    assert caught.value.code == "model_not_found"


def test_a_model_of_another_modality_is_a_404_that_says_who_can(client: Any) -> None:
    with pytest.raises(NotFoundError, match="chat"):
        client.chat.completions.create(model="embed", messages=CAPITAL)


def test_a_prompt_over_the_context_is_a_400(client: Any) -> None:
    messages: Any = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="chat", messages=messages)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temprature": 0.5}, "temprature"),
        ({"n": 0}, "n"),
        ({"logprobs": True, "top_logprobs": 1000}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
    ],
)
def test_a_bad_parameter_is_a_400_that_names_it(demo_server: Any, body: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{demo_server.url}/v1/chat/completions", json={"model": "chat", "messages": CAPITAL, **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param


async def test_a_full_queue_answers_429_with_a_time_to_retry(start: Any) -> None:
    def small_queue(data: dict[str, Any]) -> None:
        del data["models"]["chat"]
        data["models"]["embed"]["limits"] = {"max_queue_units": 4000}

    server = start(small_queue)
    body = json.dumps({"model": "embed", "input": ["word " * 200] * 16})
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(timeout=120.0) as http:
        answers = await asyncio.gather(
            *(http.post(f"{server.url}/v1/embeddings", content=body, headers=headers) for _ in range(40))
        )
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "queue_full"
    assert float(refused.headers["retry-after"]) > 0


async def test_sigterm_lets_streams_finish_and_refuses_new_ones(start: Any) -> None:
    def chat_only(data: dict[str, Any]) -> None:
        del data["models"]["embed"]

    server = start(chat_only)
    body = {
        "model": "chat",
        "messages": CAPITAL,
        "max_tokens": 120,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=120.0))
        response = await stack.enter_async_context(http.stream("POST", f"{server.url}/v1/chat/completions", json=body))
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith("data: {")
        server.process.terminate()
        rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 120
    assert server.process.wait(timeout=60) == 0
