"""The least HTTP server that streams completions of token ids, for peers that bring none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

Generate = Callable[[list[int], int], AsyncIterator[int]]
"""Yields the output tokens of a prompt, as many as asked for."""


def serve(generate: Generate, decode: Callable[[list[int]], str], port: int) -> None:
    """Runs until SIGTERM; POST /v1/completions takes ``prompt`` (token ids) and ``max_tokens``."""

    async def events(prompt: list[int], max_tokens: int) -> AsyncIterator[str]:
        num_tokens = 0
        async for token in generate(prompt, max_tokens):
            num_tokens += 1
            yield f"data: {json.dumps({'choices': [{'index': 0, 'text': decode([token])}]})}\n\n"
        yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': num_tokens}})}\n\ndata: [DONE]\n\n"

    async def complete(request: Request) -> StreamingResponse:
        body = await request.json()
        return StreamingResponse(events(body["prompt"], body["max_tokens"]), media_type="text/event-stream")

    async def health(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/v1/completions", complete, methods=["POST"]), Route("/health", health)])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
