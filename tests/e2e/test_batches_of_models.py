"""Batches of the shipped demo's models: each endpoint by what its lines answer."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.servers import DemoServer

pytestmark = pytest.mark.models

_TIMEOUT_S = 240.0
_SENTENCE = "The patient has no known allergy to penicillin."


@pytest.fixture
def client(six_server: DemoServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{six_server.url}/v1", api_key="none", max_retries=0, timeout=300) as made:
        yield made


def answers(client: openai.OpenAI, endpoint: Any, *bodies: dict[str, Any]) -> list[Any]:
    """The bodies of a batch's answers, in order; fails if a line did."""
    lines = (
        {"custom_id": str(number), "method": "POST", "url": endpoint, "body": body}
        for number, body in enumerate(bodies)
    )
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("lines.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="1h")  # type: ignore[arg-type]
    until_s = time.monotonic() + _TIMEOUT_S
    while (batch := client.batches.retrieve(batch.id)).status in ("validating", "in_progress", "finalizing"):
        assert time.monotonic() < until_s, batch
    assert batch.status == "completed", batch
    assert batch.error_file_id is None, client.files.content(batch.error_file_id).text
    assert batch.output_file_id is not None
    found = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    assert [each["custom_id"] for each in found] == [str(number) for number in range(len(bodies))]
    return [each["response"]["body"] for each in found]


def test_chats_and_embeddings_equal_those_that_were_asked_for_directly(client: openai.OpenAI) -> None:
    chat: dict[str, Any] = {
        "model": "chat",
        "temperature": 0,
        "max_tokens": 30,
        "messages": [{"role": "user", "content": "Name the capital of France."}],
    }
    first, second = answers(client, "/v1/chat/completions", chat, chat)
    for each in (first, second):
        assert "Paris" in each["choices"][0]["message"]["content"]
    (embedded,) = answers(client, "/v1/embeddings", {"model": "embed", "input": ["fever"], "encoding_format": "float"})
    direct = client.embeddings.create(model="embed", input=["fever"], encoding_format="float").data[0].embedding
    assert embedded["data"][0]["embedding"] == pytest.approx(direct, abs=1e-3)


def test_what_one_batch_speaks_another_hears(client: openai.OpenAI) -> None:
    (spoken,) = answers(
        client, "/v1/audio/speech", {"model": "speak", "voice": "alloy", "input": _SENTENCE, "response_format": "wav"}
    )
    assert spoken["content_type"].startswith("audio/")
    sound = client.files.create(file=("speech.wav", base64.b64decode(spoken["data"])), purpose="user_data")
    hear = {"model": "hear", "file": sound.id, "language": "en"}
    whole, subtitles = answers(client, "/v1/audio/transcriptions", hear, {**hear, "response_format": "srt"})
    assert whole["text"].strip() == _SENTENCE
    assert subtitles["text"].startswith("1\n00:00:0")


def test_pictures_come_as_base64(client: openai.OpenAI) -> None:
    draw = {"model": "draw", "prompt": "a red circle", "size": "64x64", "n": 1, "response_format": "b64_json"}
    (drawn,) = answers(client, "/v1/images/generations", {**draw, "seed": 1})
    assert base64.b64decode(drawn["data"][0]["b64_json"]).startswith(b"\x89PNG")


def test_a_video_is_finished_when_its_line_is(client: openai.OpenAI, six_server: DemoServer) -> None:
    (made,) = answers(client, "/v1/videos", {"model": "film", "prompt": "a red circle moves right", "seed": 1})
    assert (made["object"], made["status"], made["progress"]) == ("video", "completed", 100)
    content = httpx.get(f"{six_server.url}/v1/videos/{made['id']}/content")
    assert content.status_code == 200
    assert b"ftyp" in content.content[:16]
