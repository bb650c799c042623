"""The route ``/v1/embeddings``, driven by a fake call."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from pydantic import BaseModel
from starlette.responses import Response

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import InvalidRequest, ModelNotFound
from sixfold.core.family import Family
from sixfold.core.messages import Finished, Usage
from sixfold.core.serving.api import Call, Route, Running, ServedModel
from sixfold.plugins.embedding.api import EmbeddingAPI
from sixfold.plugins.embedding.plugin import FAMILY
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput, ImageItem, TextItem


@dataclass(frozen=True)
class FakeModel:
    name: str = "alias"
    family: Family = FAMILY
    info: ModelInfo = field(default_factory=ModelInfo)
    variant: str | None = None


class FakeCall:
    """Answers every input i with the vector (i, i + 0.5)."""

    request_id = "r"

    def __init__(self, served: FakeModel | None = None, **body: Any) -> None:
        self._body = body
        self._model = served or FakeModel()
        self.headers: Mapping[str, str] = {}
        self.inputs: list[EmbeddingInput] = []

    async def json(self, schema: type[Any]) -> Any:
        assert issubclass(schema, BaseModel)
        return schema.model_validate(self._body)

    async def model(self, name: str, operation: str) -> ServedModel:
        if (name, operation) != ("alias", "embed"):
            raise ModelNotFound("no such model")
        return self._model

    async def run(self, model: ServedModel, input: msgspec.Struct) -> Finished[Any]:
        assert isinstance(input, EmbeddingInput)
        self.inputs.append(input)
        rows = np.array([[i, i + 0.5] for i in range(input.num_inputs)], dtype="<f4")
        return Finished(
            request_id="r",
            result=EmbeddingOutput(vectors=rows.tobytes(), dimension=2),
            usage=Usage(counts={"prompt_tokens": 9}),
        )

    async def fetch(self, url: str, *, max_bytes: int) -> Any:
        if "private" in url:
            raise InvalidRequest("This address is not fetched.", code="url_not_allowed")
        return SimpleNamespace(data=url.encode() if "empty" not in url else b"", content_type="image/png")

    async def start(self, model: ServedModel, input: msgspec.Struct) -> Running:
        raise NotImplementedError

    def respond(
        self, body: bytes | msgspec.Struct | Mapping[str, object], *, media_type: str = "application/json"
    ) -> Response:
        assert isinstance(body, bytes)
        return Response(body, media_type=media_type)

    def stream_sse(self, chunks: AsyncIterator[bytes]) -> Response:
        raise NotImplementedError


async def send(call: FakeCall) -> Any:
    (route,) = (route for route in EmbeddingAPI().routes() if route.path == "/v1/embeddings")
    assert isinstance(route, Route)
    assert route.method == "POST"
    return json.loads(bytes((await route.endpoint(cast("Call", call))).body))


async def post(served: FakeModel | None = None, **body: Any) -> Any:
    return await send(FakeCall(served, **body))


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


SEES = FakeModel(info=ModelInfo(details={"images": True}))
IMAGES = [{"image": "http://x/a"}, "text", {"image": "QQ=="}]


async def test_images_by_url_are_fetched_before_the_model_sees_them() -> None:
    call = FakeCall(SEES, model="alias", input=IMAGES)
    await send(call)
    assert call.inputs[0].items == (ImageItem(data=b"http://x/a"), TextItem(text="text"), ImageItem(encoded="QQ=="))


@pytest.mark.parametrize(("url", "says"), [("http://private/", "not fetched"), ("https://x/empty", "empty file")])
async def test_a_url_that_gives_no_image_is_refused_by_its_index(url: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        await post(SEES, model="alias", input=["a", {"image": url}])
    assert caught.value.param == "input[1].image"


async def test_a_model_of_texts_takes_no_images() -> None:
    with pytest.raises(InvalidRequest, match="texts, no images") as caught:
        await post(model="alias", input=IMAGES)
    assert caught.value.param == "input"


async def test_a_model_of_another_kind_is_not_found() -> None:
    with pytest.raises(ModelNotFound):
        await post(model="other", input="a")
