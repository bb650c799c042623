"""The route ``/v1/embeddings``, driven by a fake call."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from pydantic import BaseModel
from starlette.responses import Response

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ModelNotFound
from sixfold.core.family import Family
from sixfold.core.messages import Finished, Usage
from sixfold.core.serving.api import Running, ServedModel
from sixfold.plugins.embedding.api import EmbeddingAPI
from sixfold.plugins.embedding.plugin import FAMILY
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput


@dataclass(frozen=True)
class FakeModel:
    name: str = "alias"
    family: Family = FAMILY
    info: ModelInfo = field(default_factory=ModelInfo)


class FakeCall:
    """Answers every input i with the vector (i, i + 0.5)."""

    request_id = "r"

    def __init__(self, **body: Any) -> None:
        self._body = body
        self.headers: Mapping[str, str] = {}
        self.inputs: list[EmbeddingInput] = []

    async def json(self, schema: type[Any]) -> Any:
        assert issubclass(schema, BaseModel)
        return schema.model_validate(self._body)

    def model(self, name: str, operation: str) -> ServedModel:
        if (name, operation) != ("alias", "embed"):
            raise ModelNotFound("no such model")
        return FakeModel()

    async def run(self, model: ServedModel, input: msgspec.Struct) -> Finished[Any]:
        assert isinstance(input, EmbeddingInput)
        self.inputs.append(input)
        rows = np.array([[i, i + 0.5] for i in range(input.num_inputs)], dtype="<f4")
        return Finished(
            request_id="r",
            result=EmbeddingOutput(vectors=rows.tobytes(), dimension=2),
            usage=Usage(counts={"prompt_tokens": 9}),
        )

    async def start(self, model: ServedModel, input: msgspec.Struct) -> Running:
        raise NotImplementedError

    def respond(
        self, body: bytes | msgspec.Struct | Mapping[str, object], *, media_type: str = "application/json"
    ) -> Response:
        assert isinstance(body, bytes)
        return Response(body, media_type=media_type)

    def stream_sse(self, chunks: AsyncIterator[bytes]) -> Response:
        raise NotImplementedError


async def post(**body: Any) -> Any:
    (route,) = (route for route in EmbeddingAPI().routes() if route.path == "/v1/embeddings")
    assert route.method == "POST"
    return json.loads(bytes((await route.endpoint(FakeCall(**body))).body))


async def test_the_answer_has_the_alias_the_order_and_the_usage() -> None:
    answer = await post(model="alias", input=["a", "b"])
    assert answer == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.0, 0.5]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 1.5]},
        ],
        "model": "alias",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }


async def test_base64_is_little_endian_float32() -> None:
    answer = await post(model="alias", input="a", encoding_format="base64")
    assert base64.b64decode(answer["data"][0]["embedding"]) == bytes.fromhex("000000000000003f")


async def test_a_large_answer_is_complete() -> None:
    answer = await post(model="alias", input=["a"] * 40_000)
    assert [item["embedding"][0] for item in answer["data"]] == list(range(40_000))


async def test_a_model_of_another_kind_is_not_found() -> None:
    with pytest.raises(ModelNotFound):
        await post(model="other", input="a")
