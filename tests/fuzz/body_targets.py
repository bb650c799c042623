"""Readers of JSON bodies: every schema that a client's JSON is validated against, and what is made of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

from sixfold.core.batches.lines import model_of, read_line, scan
from sixfold.core.batches.schema import BatchBody
from sixfold.core.serving.body import parse_json
from sixfold.plugins.asr.realtime_schema import parse_event
from sixfold.plugins.embedding.rerank.schema import RerankBody, ScoreBody
from sixfold.plugins.embedding.schema import EmbeddingsBody
from sixfold.plugins.image.bodies import GenerationsBody
from sixfold.plugins.image.uploads import EditsBody
from sixfold.plugins.llm.adapter_routes import LoadAdapterBody, UnloadAdapterBody
from sixfold.plugins.llm.generation import ImagePart
from sixfold.plugins.llm.image_parts import chat_images
from sixfold.plugins.llm.refusals import check_chat, check_completion
from sixfold.plugins.llm.requests import chat_input, completion_input
from sixfold.plugins.llm.responses_messages import response_images
from sixfold.plugins.llm.responses_requests import check_response, input_items, response_input
from sixfold.plugins.llm.responses_schema import ResponsesBody
from sixfold.plugins.llm.schema import ChatBody, CompletionBody
from sixfold.plugins.tts.schema import SpeechBody
from sixfold.plugins.video.schema import CreateBody, RemixBody, parse_size
from tests.fuzz.target import Target, as_file, check

BodyT = TypeVar("BodyT", bound=BaseModel)

_WORDS = (
    b'"model"',
    b'"stream":true',
    b"null",
    b"1e999",
    b"NaN",
    b"-0",
    b'"\\ud800"',
    b"[[[[",
    b'{"',
    b"\xff",
    b"\\u0000",
)
_NOTHING: dict[str, object] = {}
_DEEP = b"[" * 2000 + b"]" * 2000


def _image(url: str, detail: str, param: str) -> ImagePart:
    return ImagePart(data=url.encode(), detail="low" if detail == "low" else "auto", param=param)


def _chat(body: ChatBody) -> None:
    check_chat(body)
    images = [_image(each.url, each.detail, each.param) for each in chat_images(body)]
    chat_input(body, images=images)


def _completion(body: CompletionBody) -> None:
    check_completion(body)
    completion_input(body)


def _response(body: ResponsesBody) -> None:
    check_response(body)
    wanted = response_images(input_items(body), "input")
    response_input(body, (), images=[_image(each.url, each.detail, each.param) for each in wanted])


def _embeddings(body: EmbeddingsBody) -> None:
    check(body.request_input().num_inputs > 0, "an embedding of nothing")


def _rerank(body: RerankBody) -> None:
    body.request_input()


def _score(body: ScoreBody) -> None:
    body.request_input()


def _video(body: CreateBody) -> None:
    if body.size is not None:
        with contextlib.suppress(ValueError):  # the planner makes an answer of it
            parse_size(body.size)


def _nothing(_body: BaseModel) -> None:
    """The body is all there is to it."""


def _body(
    name: str, schema: type[BodyT], goes_on: Callable[[BodyT], None], *seeds: object, broke: tuple[bytes, ...] = ()
) -> Target:
    def read(data: bytes) -> None:
        goes_on(parse_json(data, schema))

    texts = tuple(json.dumps(seed).encode() for seed in seeds)
    names = tuple(json.dumps(field.alias or key).encode() + b":" for key, field in schema.model_fields.items())
    hostile = (
        b"",
        b"{",
        _DEEP,
        texts[0].replace(b'"model"', b'"model":"x","model"'),
        texts[0][:-1] + b',"x":' + _DEEP + b"}",
    )
    return Target(name=f"body.{name}", read=read, seeds=(*texts, *hostile), words=(*_WORDS, *names), broke=broke)


def _lines(data: bytes) -> None:
    path = as_file(data, "lines.jsonl")
    found = scan(path, endpoint="/v1/embeddings", max_lines=8, max_line_bytes=1024)
    check(bool(found.lines) or bool(found.errors), "a file with neither lines nor mistakes")
    for ref in found.lines:
        line = read_line(path, ref)
        check(0 < len(line.custom_id) <= 512 and bool(model_of(line) or True), "a line reads differently later")


_TOOL: dict[str, object] = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": _NOTHING}},
}
_PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aa", "detail": "low"}}
_LINE = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}

BODY_TARGETS = (
    _body(
        "chat",
        ChatBody,
        _chat,
        {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        {
            "model": "m",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, _PICTURE]}],
            "n": 2,
            "logprobs": True,
        },
        {
            "model": "m",
            "messages": [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "1"},
            ],
            "tools": [_TOOL],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
            },
        },
        {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "structured_outputs": {"regex": "a+"},
            "stop": ["a"],
            "logit_bias": {"1": 1},
        },
    ),
    _body(
        "completions",
        CompletionBody,
        _completion,
        {"model": "m", "prompt": "x", "max_tokens": 3, "echo": True, "logprobs": 2},
        {"model": "m", "prompt": [[1, 2], [3]], "kv_transfer_params": {"do_remote_decode": True}},
        {"model": "m", "prompt": ["a", "b"], "structured_outputs": {"choice": ["a", "b"]}, "prompt_logprobs": 1},
    ),
    _body(
        "responses",
        ResponsesBody,
        _response,
        {"model": "m", "input": "x", "instructions": "y", "store": False},
        {
            "model": "m",
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "x"},
                        {"type": "input_image", "image_url": "data:image/png;base64,aa"},
                    ],
                },
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "1"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": _NOTHING}],
            "text": {"format": {"type": "json_schema", "name": "n", "schema": _NOTHING}},
        },
    ),
    _body(
        "embeddings",
        EmbeddingsBody,
        _embeddings,
        {"model": "m", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8},
        {"model": "m", "input": [[1, 2], [3]]},
        {"model": "m", "input": [{"text": "a"}, {"image": "data:image/png;base64,aa"}]},
        {"model": "m", "messages": [{"role": "user", "content": [_PICTURE]}]},
    ),
    _body(
        "rerank",
        RerankBody,
        _rerank,
        {"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True},
    ),
    _body("score", ScoreBody, _score, {"model": "m", "text_1": "q", "text_2": ["a", "b"]}),
    _body(
        "speech",
        SpeechBody,
        _nothing,
        {"model": "m", "input": "x", "voice": {"id": "v"}, "speed": 1.5, "response_format": "pcm"},
    ),
    _body(
        "images",
        GenerationsBody,
        _nothing,
        {"model": "m", "prompt": "x", "size": "64x64", "n": 2, "seed": 1, "stream": True, "partial_images": 2},
    ),
    _body(
        "edits",
        EditsBody,
        _nothing,
        {"model": "m", "prompt": "x", "images": [{"image_url": "data:image/png;base64,aa"}], "strength": 0.5},
    ),
    _body(
        "videos",
        CreateBody,
        _video,
        {"model": "m", "prompt": "x", "size": "64x64", "seconds": "2"},
        {"prompt": "x", "size": "9" * 50 + "x1"},
    ),
    _body("remix", RemixBody, _nothing, {"prompt": "x"}),
    _body(
        "batches",
        BatchBody,
        _nothing,
        {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h", "metadata": {"a": "b"}},
    ),
    _body("load_adapter", LoadAdapterBody, _nothing, {"lora_name": "a", "lora_path": "/x"}),
    _body("unload_adapter", UnloadAdapterBody, _nothing, {"lora_name": "a"}),
    Target(
        name="body.batch_lines",
        read=_lines,
        seeds=(
            json.dumps(_LINE).encode() + b"\n" + json.dumps(_LINE | {"custom_id": "b"}).encode(),
            b"",
            b"\r\n\n{}\n[]\n",
        ),
        words=(*_WORDS, b'"custom_id":', b'"body":{"model":', b"\r\n", b'"url":"/v1/embeddings"'),
        broke=(
            json.dumps(_LINE).encode().replace(b'"m"', b'"\xff"'),
            json.dumps(_LINE).encode().replace(b'"x"', _DEEP[:900]),
        ),
    ),
    Target(
        name="body.realtime",
        read=lambda data: parse_event(text_or_bytes(data)),
        seeds=(
            b'{"type":"session.update","session":{"type":"transcription","audio":{"input":{"format":{"type":"audio/pcm","rate":16000},'
            b'"turn_detection":{"type":"server_vad","threshold":0.5},"transcription":{"model":"m"}}}}}',
            b'{"type":"transcription_session.update","session":{"input_audio_format":"pcm16"}}',
            b'{"type":"input_audio_buffer.append","audio":"AAAA","event_id":"e"}',
            _DEEP,
        ),
        words=_WORDS,
    ),
)
"""Bodies of requests and what else comes as JSON from clients."""


def text_or_bytes(data: bytes) -> str | bytes:
    """A WebSocket's message: text where it is text."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
