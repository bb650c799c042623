"""Our answers before two judges: our own OpenAPI document, and OpenAI's, in the form of the types that OpenAI makes of it.

No package ships OpenAI's public OpenAPI file. The official client's types are generated from it, so they stand for it: each
answer must be one of the type, field by field, and what it has beyond is listed here, so that no difference comes unseen.
"""

from __future__ import annotations

import io
import json
import wave
from typing import Any, cast

import httpx
import jsonschema
import pytest
from openai.types import (
    Batch,
    Completion,
    CreateEmbeddingResponse,
    ErrorObject,
    FileDeleted,
    FileObject,
    ImagesResponse,
    Model,
    Video,
    VideoDeleteResponse,
)
from openai.types.audio import Transcription, TranscriptionDiarized, TranscriptionVerbose
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import BaseModel

from tests.servers import DemoServer

pytestmark = pytest.mark.models

OURS: dict[str, set[str]] = {
    "Response": {"store"},
    "TranscriptionVerbose": {"task"},
    "Model": {
        "capabilities",
        "details",
        "max_model_len",
        "memory_bytes",
        "modality",
        "parameters",
        "parent",
        "permission",
        "root",
        "state",
    },
    "ImagesResponse": {"data.seed", "num_inference_steps"},
    "Video": {
        "fps",
        "guidance_scale",
        "negative_prompt",
        "num_frames",
        "num_inference_steps",
        "row_cache_threshold",
        "seed",
    },
}
"""What our answers have beyond OpenAI's, by type; nothing for the others."""


def silence() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(16_000))
    return file.getvalue()


def extras(value: object) -> set[str]:
    """The names of members that the type does not have, at any depth."""
    if isinstance(value, list | tuple):
        return set[str]().union(*map(extras, cast("list[object]", value)))
    if not isinstance(value, BaseModel):
        return set()
    found = set(value.model_extra or {})
    for name in type(value).model_fields:
        found |= {f"{name}.{extra}" for extra in extras(getattr(value, name))}
    return found


class Judges:
    """Asks a server, and has each answer judged twice."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._document: dict[str, Any] = client.get("/openapi.json").json()

    def ask(self, method: str, route: str, kind: type[BaseModel], *, status: int = 200, **what: Any) -> Any:
        """Sends a request; its route is as in the document, with the ids for its places under ``ids``."""
        answer = self._client.request(method, route.format(**what.pop("ids", {})), **what)
        assert answer.status_code == status, answer.text
        body = answer.json()
        self._check_ours(method, route, status, body)
        shown = body["error"] if kind is ErrorObject else body
        if kind is Video:  # OpenAI's own models have four sizes
            shown = {**shown, "size": "720x1280"}
        judged = kind.model_validate_json(json.dumps(shown))
        assert extras(judged) == OURS.get(kind.__name__, set())
        return body

    def _check_ours(self, method: str, route: str, status: int, body: object) -> None:
        responses = self._document["paths"][route][method.lower()]["responses"]
        described = responses.get(str(status)) or responses[f"{status // 100}XX"]
        schema = described["content"]["application/json"]["schema"]
        jsonschema.validate(body, {**schema, "components": self._document["components"]})


@pytest.fixture(scope="module")
def judges(six_server: DemoServer) -> Any:
    with httpx.Client(base_url=six_server.url, timeout=120) as client:
        yield Judges(client)


USER: Any = [{"role": "user", "content": "Hello"}]
TOOLS: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


@pytest.mark.parametrize(
    "more",
    [{}, {"logprobs": True, "top_logprobs": 2, "n": 2}, {"tools": TOOLS, "tool_choice": "required", "max_tokens": 40}],
)
def test_chats(judges: Judges, more: dict[str, Any]) -> None:
    body = {"model": "chat", "messages": USER, "max_tokens": 4, **more}
    judges.ask("POST", "/v1/chat/completions", ChatCompletion, json=body)


def test_completions(judges: Judges) -> None:
    body = {
        "model": "chat",
        "prompt": ["Hello", "Good"],
        "max_tokens": 3,
        "logprobs": 2,
    }  # no echo: the type has no null for the first token, as OpenAI sends it
    judges.ask("POST", "/v1/completions", Completion, json=body)


def test_responses(judges: Judges) -> None:
    body = {"model": "chat", "input": "Hello", "max_output_tokens": 16}
    made = judges.ask("POST", "/v1/responses", Response, json=body)
    judges.ask("GET", "/v1/responses/{response_id}", Response, ids={"response_id": made["id"]})


def test_embeddings(judges: Judges) -> None:
    body = {"model": "embed", "input": ["a", "b"], "encoding_format": "float"}  # base64 the client decodes before
    judges.ask("POST", "/v1/embeddings", CreateEmbeddingResponse, json=body)


@pytest.mark.parametrize(
    ("response_format", "kind"),
    [("json", Transcription), ("verbose_json", TranscriptionVerbose), ("diarized_json", TranscriptionDiarized)],
)
def test_transcriptions(judges: Judges, response_format: str, kind: type[BaseModel]) -> None:
    data = {"model": "hear", "response_format": response_format}
    if response_format == "diarized_json":
        data["chunking_strategy"] = "auto"
    judges.ask("POST", "/v1/audio/transcriptions", kind, data=data, files={"file": ("a.wav", silence())})


def test_pictures(judges: Judges) -> None:
    body = {"model": "draw", "prompt": "a red circle", "num_inference_steps": 2, "n": 2}
    judges.ask("POST", "/v1/images/generations", ImagesResponse, json=body)


def test_videos(judges: Judges) -> None:
    body = {"model": "film", "prompt": "a red circle", "num_inference_steps": 2}
    made = judges.ask("POST", "/v1/videos", Video, json=body)
    ids = {"video_id": made["id"]}
    judges.ask("GET", "/v1/videos/{video_id}", Video, ids=ids)
    judges.ask("DELETE", "/v1/videos/{video_id}", VideoDeleteResponse, ids=ids)


def test_models(judges: Judges) -> None:
    judges.ask("GET", "/v1/models/{model_id}", Model, ids={"model_id": "chat"})


def test_files_and_batches(judges: Judges) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "embed", "input": "x"}}
    files = {"file": ("lines.jsonl", json.dumps(line).encode())}
    made = judges.ask("POST", "/v1/files", FileObject, data={"purpose": "batch"}, files=files)
    body = {"input_file_id": made["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = judges.ask("POST", "/v1/batches", Batch, json=body)
    judges.ask("GET", "/v1/batches/{batch_id}", Batch, ids={"batch_id": batch["id"]})
    judges.ask("POST", "/v1/batches/{batch_id}/cancel", Batch, ids={"batch_id": batch["id"]})
    other = judges.ask(
        "POST", "/v1/files", FileObject, data={"purpose": "batch"}, files=files
    )  # one that no batch reads
    judges.ask("DELETE", "/v1/files/{file_id}", FileDeleted, ids={"file_id": other["id"]})


@pytest.mark.parametrize(
    ("status", "body"),
    [(400, {"model": "chat", "messages": []}), (404, {"model": "nobody", "messages": USER}), (400, {"modle": "chat"})],
)
def test_errors(judges: Judges, status: int, body: Any) -> None:
    judges.ask("POST", "/v1/chat/completions", ErrorObject, status=status, json=body)
