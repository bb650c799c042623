"""Readers of HTTP: forms, queries, headers, URLs and the protocol itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel
from starlette.responses import FileResponse
from starlette.types import Message, Scope
from uvicorn.config import Config
from uvicorn.server import ServerState

from sixfold.core.batches.schema import FileForm, FilesQuery
from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.fetch import Fetcher
from sixfold.core.serving.fetch_policy import check_allowed, parse_http_url
from sixfold.core.serving.form_fields import parse_fields
from sixfold.core.serving.form_reader import FormItem, FormLimits, parse_urlencoded, read_form
from sixfold.core.serving.handshake import check_origin, key_of_subprotocol
from sixfold.core.serving.protocol import bounded_protocol
from sixfold.core.serving.request_facts import read_timeout_s
from sixfold.core.serving.settings import ServerSettings, parse_priority
from sixfold.core.serving.socket_protocol import socket_protocol
from sixfold.core.telemetry.tracing import Tracing
from sixfold.plugins.asr.forms import TranscriptionForm
from sixfold.plugins.image.uploads import EditsForm
from sixfold.plugins.video.schema import ContentQuery, CreateBody, ListQuery
from tests.fuzz.target import Target, as_file, check, run

_LIMITS = FormLimits(max_bytes=1 << 16, max_upload_bytes=1 << 16, timeout_s=5.0)
_FORMS: tuple[type[BaseModel], ...] = (
    TranscriptionForm,
    EditsForm,
    CreateBody,
    FileForm,
    ListQuery,
    ContentQuery,
    FilesQuery,
)
_FETCHER = Fetcher(("*",), timeout_s=1.0)


def multipart(*parts: tuple[str, bytes]) -> bytes:
    """A body behind its boundary, as `_multipart` takes it; each part is its headers and its content."""
    body = b"".join(b"--cut\r\n%b\r\n\r\n%b\r\n" % (headers.encode(), content) for headers, content in parts)
    return b"cut\n" + body + b"--cut--\r\n"


def field(name: str, value: str = "x") -> tuple[str, bytes]:
    """A part of a form that is no file."""
    return f'Content-Disposition: form-data; name="{name}"', value.encode()


def read_whole_form(kind: str, pieces: Sequence[bytes]) -> list[FormItem]:
    """A form's items, as a body that comes in these pieces brings them."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    remaining = iter(messages)

    async def receive() -> Message:
        return next(remaining)

    return run(read_form(receive, {"content-type": kind}, _LIMITS))


def _multipart(data: bytes) -> None:
    boundary, _, body = data.partition(b"\n")
    kind = "multipart/form-data; boundary=" + boundary.decode("latin-1")
    items = read_whole_form(kind, [body])
    in_pieces = read_whole_form(kind, [body[at : at + 7] for at in range(0, len(body), 7)])
    check(items == in_pieces, "a form reads differently when it comes in pieces")
    _as_schemas(items)


def _urlencoded(data: bytes) -> None:
    _as_schemas(parse_urlencoded(data))


def _as_schemas(items: Sequence[FormItem]) -> None:
    failure: Exception | None = None
    for schema in _FORMS:
        try:
            parse_fields(items, schema)
        except InvalidRequest as error:
            failure = error
    if failure is not None:
        raise failure


def _headers(data: bytes) -> None:
    lines = data.decode("latin-1").split("\n")
    timeout, priority, origin, host, subprotocol = (*lines, "", "", "", "", "")[:5]
    scope: Scope = {
        "headers": [(b"origin", origin.encode("latin-1")), (b"host", host.encode("latin-1"))],
        "subprotocols": [subprotocol],
    }
    key_of_subprotocol(scope)
    seconds = read_timeout_s({"x-request-timeout-s": timeout}, 60.0)
    check(seconds is not None and 0 < seconds <= 60.0, "a deadline beyond the server's")
    check_origin(scope, ())
    try:
        parse_priority(priority)
    except ValueError:  # pydantic's word, and `Principal.priority_of`'s
        return


@cache
def _tracing() -> Tracing:
    return Tracing(TracerProvider())


def _traceparent(data: bytes) -> None:
    lines = data.decode("latin-1").split("\n")
    parent, state = (*lines, "")[:2]
    trace = _tracing().begin({"traceparent": parent, "tracestate": state}, name="request", arrived_s=0.0)
    check(len(trace.trace_id) == 32, "a trace id is 32 digits")
    trace.headers()


def _range(data: bytes) -> None:
    headers = [(name, value[:2048]) for name, value in zip((b"range", b"if-range"), data.split(b"\n"), strict=False)]
    scope: Scope = {"type": "http", "method": "GET", "headers": headers}
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    path = as_file(bytes(range(256)) * 4, "ranged")
    run(FileResponse(path, media_type="video/mp4")(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    check(sent[0]["status"] in (200, 206, 400, 416), f"a range is answered with {sent[0]['status']}")
    # Overlapping ranges must not make a small file a large answer (CVE-2025-62727 was of this kind).
    check(len(body) < 64 * 1024, f"a file of 1 KiB is answered with {len(body)} bytes")


def _data_url(data: bytes) -> None:
    fetched = run(_FETCHER.fetch("data:" + data.decode("latin-1"), max_bytes=2048))
    check(len(fetched.data) <= 2048, "more than was asked for")


def _http_url(data: bytes) -> None:
    url = parse_http_url(data.decode("utf-8", "replace"))
    check(all(ord(character) > 32 for character in url.authority + url.target), "a URL could end a header")
    check(0 <= url.port < 65_536, "a port that is none")
    check_allowed(url, ("example.org", "*.example.com:8080", "[::1]:*"))


class _Wire(asyncio.Transport):
    """Takes what a connection sends."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.closed = False
        self.protocol: Any = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        found: asyncio.BaseProtocol = self.protocol
        return found

    def write(self, data: Any) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        """Nothing to pause."""

    def resume_reading(self) -> None:
        """Nothing to resume."""


async def _answer(scope: Scope, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pass
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@cache
def _protocol() -> tuple[Config, Any]:
    settings = ServerSettings(max_header_bytes=4096)
    config = Config(
        _answer,
        http=bounded_protocol(settings),
        ws=socket_protocol(settings),
        ws_max_size=4096,
        ws_per_message_deflate=False,
        log_config=None,
        lifespan="off",
        access_log=False,
    )
    config.load()
    return config, config.http_protocol_class


def _raw_http(data: bytes) -> None:
    async def connect() -> bytes:
        config, kind = _protocol()
        wire, state = _Wire(), ServerState()
        wire.protocol = kind(config=config, server_state=state, app_state={})
        wire.protocol.connection_made(wire)
        for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
            if not wire.closed:
                wire.protocol.data_received(piece)
                for _ in range(3):
                    await asyncio.sleep(0)
        wire.protocol.connection_lost(None)
        while state.tasks:
            await asyncio.sleep(0)
        return bytes(wire.sent)

    sent = run(connect())
    check(not sent or sent.startswith(b"HTTP/1.1 "), "what is sent is no answer")
    check(b"HTTP/1.1 500" not in sent, "a defect is answered")


_HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_FILE = 'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav'

HTTP_TARGETS = (
    Target(
        name="http.multipart",
        read=_multipart,
        seeds=(
            multipart((_FILE, b"RIFF"), field("model", "hear"), field("timestamp_granularities[]", "word")),
            multipart(field("model"), field("chunking_strategy[type]", "server_vad"), field("stream", "true")),
            multipart(
                ("Content-Disposition: form-data; name=\"f\"; filename*=utf-8''%e2%82%ac.png", b"x"), field("a[0][b]")
            ),
            b"cut\n--cut--\r\n",
        ),
        words=(
            b"--cut",
            b"\r\n\r\n",
            b"form-data",
            b"filename*=",
            b"Content-Transfer-Encoding: ",
            b"boundary",
            b"[0]",
            b"[]",
        ),
        broke=(multipart(field(f"image[{'1' * 4400}][x]")), multipart(field("x[1][" + "9" * 4400 + "]"))),
        max_bytes=8192,
    ),
    Target(
        name="http.urlencoded",
        read=_urlencoded,
        seeds=(
            b"model=hear&timestamp_granularities%5B%5D=word&stream=true",
            b"limit=3&after=x&order=asc",
            b"a[b]=1&a[c][]=2&=&&x",
        ),
        words=(b"%5B", b"[]", b"[0]", b"model=", b"%00", b"%ff", b"&"),
        broke=(b"image[" + b"1" * 4400 + b"][x]=1&image[2][x]=2",),
        max_bytes=8192,
    ),
    Target(
        name="http.headers",
        read=_headers,
        seeds=(
            b"1.5\ninteractive\nhttp://a:1\na:1\nopenai-insecure-api-key.x",
            b"inf\n2\nhttp://[::1\n\n",
            b"1e400\nbatch\nnull",
        ),
        words=(b"nan", b"http://[", b"interactive", b"realtime", b"_"),
    ),
    Target(
        name="http.traceparent",
        read=_traceparent,
        seeds=(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\nvendor=value,other=1", b"ff-0-0-0", b""),
        words=(b"00-", b"-01", b"=", b","),
    ),
    Target(
        name="http.range",
        read=_range,
        seeds=(
            b"bytes=0-99",
            b'bytes=-5\n"x"',
            b"bytes=" + b",".join(b"0-1023" for _ in range(200)),
            b"bytes=1-,2-,3-",
        ),
        words=(b"bytes=", b"-", b",", b"18446744073709551616"),
    ),
    Target(
        name="http.data_url",
        read=_data_url,
        seeds=(b"image/png;base64,iVBORw0KGgo=", b",plain%20text", b";base64,%61%61==", b"no comma"),
        words=(b";base64,", b"%3D", b"=", b"charset="),
    ),
    Target(
        name="http.url",
        read=_http_url,
        seeds=(
            b"http://example.org/a?b#c",
            "https://bücher.example.com:8080/x".encode(),
            b"http://[::1]:9/",
            b"http://u:p@h/",
            b"http://a%2fb/",
        ),
        words=(b"http://", b"https://", b"@", b"[", b"]", b":65536", b"\\", b"xn--"),
    ),
    Target(
        name="http.raw",
        read=_raw_http,
        seeds=(
            b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\nTrailer: x\r\n\r\n",
            _HANDSHAKE + b"\x81\x82\0\0\0\0{}" + b"\x88\x80\0\0\0\0",
            _HANDSHAKE + b"\x81\xfe\xff\xff\0\0\0\0",
        ),
        words=(
            b"\r\n",
            b"HTTP/1.1",
            b"Host: ",
            b"Content-Length: ",
            b"Transfer-Encoding: chunked",
            b"Expect: 100-continue",
            b"0\r\n",
        ),
    ),
)
"""HTTP itself."""
