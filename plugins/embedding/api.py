"""The HTTP face of embeddings: OpenAI's ``/v1/embeddings``, and the rerank and score routes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
from starlette.responses import Response

from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.api import Call, ModalityAPI, Panel, Route, ServedModel
from sixfold.plugins.embedding.answers import EmbeddingsObject
from sixfold.plugins.embedding.rerank import api as rerank
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput, EmbeddingsBody, ImageItem, Item
from sixfold.plugins.embedding.wire import response_body

_INLINE_BYTES = 262_144
"""Vectors below this are written in the event loop (at most 10 ms); larger ones in a thread, so that others go on."""


_MAX_IMAGE_BYTES = 20_000_000
"""Of one fetched file; what comes in the body is bounded by ``server.max_body_bytes``."""


class EmbeddingAPI(ModalityAPI):
    """Answers ``POST /v1/embeddings`` and what `sixfold.plugins.embedding.rerank.api` lists."""

    modality = "embedding"

    def routes(self) -> Sequence[Route]:
        """All routes of the modality."""
        return (
            Route(
                path="/v1/embeddings",
                endpoint=self.embed,
                body=EmbeddingsBody,
                answer=EmbeddingsObject,
                in_batches=True,
            ),
            *rerank.routes(),
        )

    def panels(self) -> Sequence[Panel]:
        """The tab Embed."""
        script = Path(__file__).parent / "playground" / "embed.js"
        return (Panel(title="Embed", operation="embed", script=script, order=20),)

    async def embed(self, call: Call) -> Response:
        """Embeds the inputs of one body; the answer has them in order.

        Raises:
            RequestError: The body is wrong, the model does not embed, or the request did not succeed.
        """
        body = await call.json(EmbeddingsBody)
        model = await call.model(body.model, "embed")
        wanted = body.request_input()
        if wanted.items:
            wanted = await _with_images(call, model, wanted)
        finished = await call.run(model, wanted)
        output: EmbeddingOutput = finished.result
        write = partial(
            response_body,
            output,
            model=model.name,
            encoding=body.encoding_format,
            num_tokens=finished.usage.counts["prompt_tokens"],
        )
        return call.respond(write() if _num_bytes(output) <= _INLINE_BYTES else await asyncio.to_thread(write))


def _num_bytes(output: EmbeddingOutput) -> int:
    sparse = sum(len(vector.indices) + len(vector.values) for vector in output.sparse)
    return len(output.vectors) + sparse + sum(map(len, output.multi_vectors))


async def _with_images(call: Call, model: ServedModel, wanted: EmbeddingInput) -> EmbeddingInput:
    """Fetches what is given by URL, one after the other: a request must not open many connections at once."""
    if not model.info.details.get("images"):
        raise InvalidRequest(f"The model {model.name!r} embeds texts, no images.", param="input")
    items: list[Item] = []
    for index, item in enumerate(wanted.items):
        if isinstance(item, ImageItem) and item.is_remote:
            item = ImageItem(data=await _fetched(call, item.encoded, f"input[{index}].image"))
        items.append(item)
    return msgspec.structs.replace(wanted, items=tuple(items))


async def _fetched(call: Call, url: str, param: str) -> bytes:
    try:
        data = (await call.fetch(url, max_bytes=_MAX_IMAGE_BYTES)).data
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=param, code=error.code) from error
    if not data:
        raise InvalidRequest(f"{param}: the URL gave an empty file.", param=param)
    return data
