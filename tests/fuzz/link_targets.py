"""Readers of what other processes send: KV transfer, KV events, the gateway's look into requests and answers, the hub."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict

from sixfold.core.benchmark.client import Answer
from sixfold.core.benchmark.outcome import read_answer
from sixfold.core.benchmark.workload import Workload
from sixfold.core.errors import InvalidRequest, NotFound, NotReady
from sixfold.core.runtime.wire import frame
from sixfold.core.serving.body import parse_json
from sixfold.core.serving.form_fields import parse_fields
from sixfold.plugins.llm.kv_channel import OWNER, READER, Channel, Chunk, Offer, Pull, Take, TransferTimes
from sixfold.plugins.llm.kv_handle import KvHandle, PeerGone
from sixfold.scaling.disagg.bodies import can_split, decode_body, handle_of, prefill_body, read_object
from sixfold.scaling.gateway.events import WholeEvents
from sixfold.scaling.gateway.fleet import Fleet, read_listing
from sixfold.scaling.gateway.form_peek import peek_form
from sixfold.scaling.gateway.inbound import Inbound, read_inbound, shape_of
from sixfold.scaling.gateway.object_names import object_of_path
from sixfold.scaling.gateway.outlier import OutlierDetector
from sixfold.scaling.gateway.owners import Owners
from sixfold.scaling.gateway.resume import Diverged, Replay, StreamRecord, is_resumable
from sixfold.scaling.gateway.settings import OutlierSettings
from sixfold.scaling.hub.messages import SiteReport
from sixfold.scaling.hub.web import decode
from sixfold.scaling.registry import ReplicaRecord
from sixfold.scaling.route.kv_events import decode_batch
from sixfold.scaling.route.load import RoundRobin
from sixfold.scaling.route.router import Router
from sixfold.scaling.top.scrape import read_scrape
from tests.fuzz.http_targets import field, multipart, read_whole_form
from tests.fuzz.target import Target, check, run, text_of

_TIMES = TransferTimes(timeout_s=2.0, idle_s=1.0)
_DEEP = b"[" * 2000


class _Named(BaseModel):
    """What a server reads of a body: the model."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None


class _Form(BaseModel):
    """A form of a server: what it does not know it refuses, as all do."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    response_format: str | None = None
    x: str | None = None


def _kv_frames(data: bytes) -> None:
    here, there = socket.socketpair()
    with here, there:
        there.sendall(data)
        there.shutdown(socket.SHUT_WR)
        channel = Channel(here, _TIMES, monotonic)
        decoder: msgspec.msgpack.Decoder[Any] = READER if len(data) % 2 else OWNER
        while True:
            channel.receive(decoder)


def _kv_events(data: bytes) -> None:
    for event in decode_batch(data).events:
        check(bool(type(event).__name__), "an event of no kind")


def _inbound(
    method: str, path: str, headers: Mapping[str, str], body: bytes, form: Mapping[str, str] | None
) -> Inbound:
    inbound = read_inbound(method, path, b"", headers, body, form=form)
    is_resumable(inbound)
    shape = shape_of(inbound, adapter=None, region=None, session=None, tenant="t")
    check(shape.prompt_units >= 1, "a request of no size")
    with suppress(NotReady):  # the server of an object may yet turn up
        _owners(inbound, guards=False)
    return inbound


def _owners(inbound: Inbound, *, guards: bool) -> None:
    fleet = Fleet(
        (Router(RoundRobin()),),
        OutlierDetector(OutlierSettings()),
        lambda _names, _region: True,
        monotonic,
        lambda: None,
    )
    Owners(fleet, guards=guards, grace_s=4.0, clock=monotonic).owners_of(inbound, tenant="t")


def _gateway_json(data: bytes) -> None:
    inbound = _inbound("POST", "/v1/chat/completions", {"content-type": "application/json"}, data, None)
    try:
        served = parse_json(data, _Named)
    except InvalidRequest:
        return  # the server refuses what the gateway let pass
    check(served.model == inbound.model, f"the gateway routes {inbound.model!r}, the server serves {served.model!r}")
    body = msgspec.json.decode(data, type=dict[str, Any])
    if can_split(inbound.path, body):
        decode_body(prefill_body(body), None)


def _gateway_form(data: bytes) -> None:
    boundary, _, body = data.partition(b"\n")
    headers = {"content-type": "multipart/form-data; boundary=" + boundary.decode("latin-1")}
    found = run(peek_form(headers, body))
    inbound = _inbound("POST", "/v1/audio/transcriptions", headers, body, found)
    try:
        served = parse_fields(read_whole_form(headers["content-type"], [body]), _Form)
    except InvalidRequest:
        return
    check(served.model == inbound.model, f"the gateway routes {inbound.model!r}, the server serves {served.model!r}")


def _gateway_path(data: bytes) -> None:
    path = "/v1/" + data.decode("latin-1")
    object_of_path(path)
    inbound = read_inbound("GET", path, data[:64], {}, b"")
    try:
        _owners(inbound, guards=True)
    except (NotFound, NotReady):
        return
    check(object_of_path(path) is None, "an object of nobody's is handed out")


def _gateway_events(data: bytes) -> None:
    whole = WholeEvents()
    record = StreamRecord()
    passed = b""
    for at in range(0, len(data), 11):
        part = whole.feed(data[at : at + 11])
        passed += part
        record.feed(part)
    check(passed + whole.rest() == data, "events are lost on the way")
    again = Replay(record)
    at_once = StreamRecord()
    at_once.feed(passed)
    check(at_once.texts == record.texts, "a stream is remembered differently when it comes in pieces")
    again.cut(passed)


def _listing(data: bytes) -> None:
    class Listed(msgspec.Struct):
        data: list[msgspec.Raw]

    for name in read_listing(msgspec.json.decode(data, type=Listed).data):
        check(name == str(name), "a model without a name")


def _prefill_answer(data: bytes) -> None:
    handle = handle_of(read_object(data))
    if handle is not None:
        decode_body({}, handle)


def _handle(data: bytes) -> None:
    msgspec.convert(msgspec.json.decode(data), KvHandle)


def _hub(data: bytes) -> None:
    decode(data, SiteReport).newer_than(None)


def _record(data: bytes) -> None:
    msgspec.json.decode(data, type=ReplicaRecord)


def _measured(data: bytes) -> None:
    for framing in ("json", "sse", "bytes"):
        answer = Answer(0.0, 200, {}, [(0.1, data[: len(data) // 2]), (0.2, data[len(data) // 2 :])], 0.3)
        workload = Workload(name="w", summary="", path="/", framing=framing, make_body=lambda _name, _sample: {})
        check(read_answer(workload, answer, due_s=0.0).e2e_s >= 0, "an answer before its request")


def _scrape(data: bytes) -> None:
    read_scrape(text_of(data), 0.0).total("num_requests_running")


def _sse(*events: object) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


def _chunk(**delta: object) -> dict[str, object]:
    return {"id": "c", "created": 1, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


_CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, "seed": 1}
_KV_WORDS = (b"\xa4type", b"\xa4take", b"\xa5offer", b"\xa4pull", b"\xa5chunk", b"\x93", b"\xde\xff\xff", b"\xc1")
_EVENTS = msgspec.msgpack.encode(
    [
        1.0,
        [{"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [1], "block_size": 1}],
        0,
    ]
)
_BROKEN_TEXT = b'{"model":"m","messages":[],"response_format":"\xff","max_tokens":"\xff","previous_response_id":"\xff"}'

LINK_TARGETS = (
    Target(
        name="link.kv_transfer",
        read=_kv_frames,
        refuses=(PeerGone,),
        seeds=tuple(
            frame(msgspec.msgpack.encode(message))
            for message in (Take("l", "s"), Pull(0), Offer(1, 2, 3), Chunk(0, (1, 2)))
        ),
        words=_KV_WORDS,
        broke=(
            frame(b"\x81\xa4type\xa2\xff\xff"),
            frame(b"\x83\xa4type\xa4take\xa8lease_id\xa1\xff\xa6secret\xa1x"),
            frame(b"\x81" + b"\x91" * 9000 + b"\x00") + b"\0",
        ),
    ),
    Target(
        name="link.kv_events",
        read=_kv_events,
        refuses=(ValueError, RecursionError),  # what the subscriber waits for
        seeds=(_EVENTS, msgspec.msgpack.encode([1.0, [{"type": "AllBlocksCleared"}]]), b""),
        words=(*_KV_WORDS, b"BlockStored", b"BlockRemoved"),
    ),
    Target(
        name="gateway.json",
        read=_gateway_json,
        seeds=(
            json.dumps(_CHAT).encode(),
            b'{"model":"a","model":"b","messages":[]}',
            b'{"model":"m","prompt":[1,2],"max_tokens":5}',
            b'{"model":null}',
        ),
        words=(
            b'"model":',
            b'"prompt":[1',
            b'"response_format":"url"',
            b'"kv_transfer_params":{}',
            b'"\\u006dodel":',
            b"\xff",
        ),
        broke=(
            _BROKEN_TEXT,
            b'{"model":"m","prompt":["\xff"]}',
            b'{"model":"m","prompt":' + _DEEP + b"}",
            b'{"model":"m","seed":1,"stream":true,"n":"\xff"}',
        ),
    ),
    Target(
        name="gateway.form",
        read=_gateway_form,
        seeds=(
            multipart(field("model", "m"), field("response_format", "json")),
            multipart(field("model[]", "m"), field("model", "n")),
            multipart(('content-disposition: attachment; name="model"', b"m"), field("model", "n")),
            multipart(('content-disposition: form-data; name="model"; filename=""', b"m"), field("x")),
        ),
        words=(b'name="model"', b"name*=utf-8''model", b"; filename=", b"model[", b"--cut", b"\r\n\r\n", b"\\"),
    ),
    Target(
        name="gateway.path",
        read=_gateway_path,
        seeds=(b"videos/v1/content", b"files/%2e%2e/x", b"responses//./r", b"batches", b"models/a/b?x"),
        words=(b"videos/", b"files/", b"%2f", b"%2e%2e", b"/./", b"//", b"?"),
    ),
    Target(
        name="gateway.events",
        read=_gateway_events,
        refuses=(Diverged,),
        seeds=(
            _sse(
                _chunk(role="assistant", content="a"),
                _chunk(content="b"),
                _chunk(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "{"}}]),
            ),
            _sse({"id": "c", "choices": [{"text": "x", "finish_reason": "stop"}]}),
            b": keep-alive\n\ndata: {\r\n\r\n",
        ),
        words=(
            b"data: {",
            b"\n\n",
            b"\r\n\r\n",
            b'"choices":[',
            b'"delta":{',
            b'"tool_calls":[{',
            b"data: [DONE]",
            b'"finish_reason":',
        ),
        broke=(
            _sse({"choices": [1]}),
            _sse({"choices": {"a": 1}}),
            _sse({"choices": 1}),
            _sse({"choices": [{"delta": "x"}]}),
            _sse({"choices": [{"delta": {"tool_calls": ["x"]}}]}),
            _sse({"choices": [{"delta": {"tool_calls": 1}}]}),
            b'data: {"a":"\xff"}\n\n',
            b"data: {" + _DEEP + b"\n\n",
        ),
    ),
    Target(
        name="gateway.listing",
        read=_listing,
        refuses=(ValueError, RecursionError),  # what the prober waits for
        seeds=(b'{"data":[{"id":"m","root":"m","parent":null,"state":"ready"}]}', b'{"data":[1]}'),
        words=(b'{"data":[', b'"id":', b"\xff"),
    ),
    Target(
        name="gateway.prefill_answer",
        read=_prefill_answer,
        refuses=(),
        seeds=(b'{"kv_transfer_params":{"handle":{"a":1}}}', b"[]", b"{"),
        words=(b'"kv_transfer_params":', b'"handle":'),
        broke=(b'{"a":"\xff"}', b'{"a":' + _DEEP + b"}"),
    ),
    Target(
        name="gateway.kv_handle",
        read=_handle,
        refuses=(ValueError, RecursionError),
        seeds=(
            b'{"fingerprint":"a","chain":"","num_tokens":1,"num_bytes":1,"address":"tcp:a:1","lease_id":"l","secret":"s","lease_s":1.0}',
        ),
    ),
    Target(
        name="hub.report",
        read=_hub,
        seeds=(
            b'{"site_id":"a","incarnation":1,"sequence":1,"loads":[{"model":"m","origin":"o","num_replicas":1.0}]}',
            _DEEP,
            b"{",
        ),
        words=(b'"capacities":[', b'"running":[', b"\xff", b"1e999"),
        broke=(b'{"x":' + _DEEP + b"}",),
    ),
    Target(
        name="hub.replica_record",
        read=_record,
        refuses=(ValueError, RecursionError),
        seeds=(b'{"replica_id":"a","url":"http://a"}', b"{"),
    ),
    Target(
        name="bench.answer",
        read=_measured,
        refuses=(),
        seeds=(
            _sse(_chunk(content="a"), {"choices": [], "usage": {"prompt_tokens": 1}}),
            b'{"usage":{"prompt_tokens":1}}',
            b"x",
        ),
        words=(b"data: ", b"\n\n", b'"usage":', b"[DONE]"),
        broke=(_sse(1), _sse([]), b'data: {"a":' + _DEEP + b"\n\n", b"data: null\n\n"),
    ),
    Target(
        name="top.scrape",
        read=_scrape,
        refuses=(ValueError,),
        seeds=(b'# TYPE sixfold:x gauge\nsixfold:x{model_name="a\\"b"} 1.5\n', b"a{", b"sixfold:x NaN 1\n"),
        words=(b"# HELP ", b"# TYPE ", b'{a="', b"} 1", b" 1e999"),
        broke=(b"a{b", b'a{b="c"', b"# TYPE\n", b"x\n", b'a{b="c} 1\n'),
    ),
)
"""What comes from other processes."""
