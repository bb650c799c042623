"""The HTTP face of embeddings: OpenAI's ``/v1/embeddings``, and the rerank and score routes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from starlette.responses import Response

from sixfold.core.serving.api import Call, ModalityAPI, Route
from sixfold.plugins.embedding.rerank import api as rerank
from sixfold.plugins.embedding.schema import EmbeddingOutput, EmbeddingsBody
from sixfold.plugins.embedding.wire import response_body

_INLINE_BYTES = 262_144
"""Vectors below this are written in the event loop (at most 10 ms); larger ones in a thread, so that others go on."""


class EmbeddingAPI(ModalityAPI):
    """Answers ``POST /v1/embeddings`` and what `sixfold.plugins.embedding.rerank.api` lists."""

    modality = "embedding"

    def routes(self) -> Sequence[Route]:
        """All routes of the modality."""
        return (Route(path="/v1/embeddings", endpoint=self.embed, body=EmbeddingsBody), *rerank.routes())

    async def embed(self, call: Call) -> Response:
        """Embeds the inputs of one body; the answer has them in order.

        Raises:
            RequestError: The body is wrong, the model does not embed, or the request did not succeed.
        """
        body = await call.json(EmbeddingsBody)
        model = call.model(body.model, "embed")
        finished = await call.run(model, body.request_input())
        output: EmbeddingOutput = finished.result
        write = partial(
            response_body,
            output,
            model=model.name,
            encoding=body.encoding_format,
            num_tokens=finished.usage.counts["prompt_tokens"],
        )
        return call.respond(write() if len(output.vectors) <= _INLINE_BYTES else await asyncio.to_thread(write))
