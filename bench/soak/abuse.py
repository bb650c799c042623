"""What careless and hostile clients send: each piece with the statuses that may answer it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass

from corpus import CLIP, form_ask, json_ask
from exchange import POLITE, Ask, Manner, Reply
from ledger import End, Verdict, refusal_of, transport_problem

_CHAT = "/v1/chat/completions"
_HELLO = [{"role": "user", "content": "Hello."}]
_KEY = base64.b64encode(b"sixteen bytes ok").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Abuse:
    """One piece.

    Attributes:
        act: What it is.
        ask: What is sent.
        manner: How.
        statuses: What may answer; 0 is a connection that is closed without a word. Empty: whatever it says, it must end.
    """

    act: str
    ask: Ask
    manner: Manner = POLITE
    statuses: Sequence[int] = (400,)


def all_abuse() -> list[Abuse]:
    """Every piece once."""
    return [*_bodies(), *_unfinished(), *_raw(), *_sockets()]


def judge(abuse: Abuse, reply: Reply, request_id: str) -> Verdict:
    """What the end of an abusive exchange means: clear refusals are right, and so is hanging up on bytes that are not HTTP."""
    if reply.hung:
        return Verdict(end=End.WRONG, problem="no end")
    if reply.left:
        return Verdict(end=End.LEFT)
    if not abuse.statuses or (0 in abuse.statuses and not reply.status):
        return Verdict(end=End.REJECTED)
    if reply.num_messages == 1 and reply.status in abuse.statuses:
        reply.broken = None  # a reset after the whole answer: the server did not read on, and need not
    own_id = request_id if abuse.ask.head is None else reply.headers.get("x-request-id", "")  # a raw head carries none
    problem = transport_problem(reply, own_id)
    if problem is not None:
        return Verdict(end=End.WRONG, problem=problem)
    refusal = refusal_of(reply) if reply.body.startswith(b"{") else None
    if reply.status == 503 and refusal is not None and refusal.end is not End.WRONG:
        return Verdict(end=End.REFUSED, code=refusal.code)  # its model's worker has just been killed
    if reply.status not in abuse.statuses:
        return Verdict(end=End.WRONG, problem=f"answered {reply.status}: {bytes(reply.body[:120])!r}")
    return Verdict(end=End.REJECTED, code=None if refusal is None else refusal.code)


def _bodies() -> list[Abuse]:
    sound = CLIP.read_bytes()
    form = form_ask("/v1/audio/transcriptions", {"model": "hear"}, sound)
    chat = {"model": "chat", "messages": _HELLO}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%%"}}
    looked_at = [{"role": "user", "content": [image]}]
    return [
        Abuse(act="half a JSON", ask=Ask(path=_CHAT, body=b'{"model": "chat", "messages": [{"role"')),
        Abuse(act="no UTF-8", ask=Ask(path=_CHAT, body=b'{"model": "chat\xff\xfe"}')),
        Abuse(act="deep JSON", ask=Ask(path=_CHAT, body=b"[" * 50_000 + b"]" * 50_000)),
        Abuse(act="wrong types", ask=json_ask(_CHAT, {"model": "chat", "messages": "hello"})),
        Abuse(act="unknown field", ask=json_ask(_CHAT, {**chat, "no_such_field": 1})),
        Abuse(act="impossible values", ask=json_ask(_CHAT, {**chat, "temperature": 1e9, "max_tokens": -4})),
        Abuse(act="a picture for a text model", ask=json_ask(_CHAT, {**chat, "messages": looked_at})),
        Abuse(act="unknown model", ask=json_ask(_CHAT, {**chat, "model": "nothing"}), statuses=(404,)),
        Abuse(act="model of another modality", ask=json_ask(_CHAT, {**chat, "model": "draw"}), statuses=(400, 404)),
        Abuse(act="no input", ask=json_ask("/v1/embeddings", {"model": "embed", "input": []})),
        Abuse(
            act="wrong size", ask=json_ask("/v1/images/generations", {"model": "draw", "prompt": "x", "size": "7x9"})
        ),
        Abuse(act="no pictures", ask=json_ask("/v1/images/generations", {"model": "draw", "prompt": "x", "n": 0})),
        Abuse(
            act="no voice",
            ask=json_ask("/v1/audio/speech", {"model": "speak", "voice": "nobody", "input": "x"}),
            statuses=(400, 404),
        ),
        Abuse(act="a clip without end", ask=json_ask("/v1/videos", {"model": "film", "prompt": "x", "seconds": "1e9"})),
        Abuse(act="unknown video", ask=Ask(method="GET", path="/v1/videos/video_nothing"), statuses=(404,)),
        Abuse(act="noise for sound", ask=form_ask("/v1/audio/transcriptions", {"model": "hear"}, os.urandom(20_000))),
        Abuse(
            act="half a sound",
            ask=form_ask("/v1/audio/transcriptions", {"model": "hear"}, sound[:9_000]),
            statuses=(200, 400),
        ),
        Abuse(
            act="form without its end", ask=Ask(path=form.path, body=form.body[:30_000], content_type=form.content_type)
        ),
        Abuse(
            act="form of another edge",
            ask=Ask(path=form.path, body=form.body, content_type="multipart/form-data; boundary=x"),
        ),
        Abuse(act="form without an edge", ask=Ask(path=form.path, body=form.body, content_type="multipart/form-data")),
        Abuse(act="unknown path", ask=Ask(path="/v1/nothing", body=b"{}"), statuses=(404,)),
        Abuse(act="wrong method", ask=Ask(method="DELETE", path=_CHAT), statuses=(405,)),
    ]


def _unfinished() -> list[Abuse]:
    """Bodies that do not come, or that are too large."""
    chat = json_ask(_CHAT, {"model": "chat", "messages": [{"role": "user", "content": "word " * 4000}]})
    form = form_ask("/v1/audio/transcriptions", {"model": "hear"}, CLIP.read_bytes())
    huge = Ask(path=_CHAT, body=b'{"model": "' + b"a" * 65_536, claimed_bytes=64 << 20)
    return [
        Abuse(act="half a body, then gone", ask=chat, manner=Manner(sent_share=0.5)),
        Abuse(act="half a body, then nothing", ask=chat, manner=Manner(sent_share=0.5, stall_s=3.0)),
        Abuse(act="half a form, then gone", ask=form, manner=Manner(sent_share=0.6)),
        Abuse(act="half a form, then nothing", ask=form, manner=Manner(sent_share=0.6, stall_s=3.0)),
        Abuse(act="a body that is too large", ask=huge, statuses=(413,)),
        Abuse(act="gone at once", ask=chat, manner=Manner(leave_after_s=0.002)),
    ]


def _raw() -> list[Abuse]:
    """What is no HTTP."""
    early = Manner(leave_after_s=2.0)
    post = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
    two_lengths = post + b"Content-Length: 5\r\n\r\nabcde"
    both = post + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    endless = b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"x-a: b\r\n" * 20_000
    return [
        Abuse(act="noise", ask=Ask(path="/", head=os.urandom(4096)), statuses=(0, 400)),
        Abuse(act="two lengths", ask=Ask(path="/", head=two_lengths), statuses=(0, 400)),
        Abuse(act="length and chunks", ask=Ask(path="/", head=both), statuses=(0, 400)),
        Abuse(act="headers without end", ask=Ask(path="/", head=endless), statuses=(0, 400, 431)),
        Abuse(act="half a request line", ask=Ask(path="/", head=b"POST /v1/cha"), manner=early),
        Abuse(act="a connection and nothing else", ask=Ask(path="/", head=b""), manner=early),
    ]


def _sockets() -> list[Abuse]:
    """WebSockets that are none, or that break their own rules after the handshake."""
    leaves = Manner(leave_after_s=3.0)

    def shake(path: str, *, key: str = _KEY, after: bytes = b"") -> Ask:
        head = (
            f"GET {path} HTTP/1.1\r\nHost: soak\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        return Ask(path=path, head=head.encode() + after)

    hear = "/v1/realtime?model=hear"
    text = b'\x81\x84\x00\x00\x00\x00{"a"'  # a masked frame of half a JSON
    return [
        Abuse(act="socket without a key", ask=shake(hear, key=""), statuses=(0, 400)),
        Abuse(act="socket of an unknown model", ask=shake("/v1/realtime?model=nothing"), statuses=(404,)),
        Abuse(act="socket on a plain path", ask=shake(_CHAT), statuses=(400, 403, 404, 405, 426)),
        Abuse(act="frames without a mask", ask=shake(hear, after=b"\x81\x02hi"), manner=leaves, statuses=()),
        Abuse(
            act="a frame of a petabyte",
            ask=shake(hear, after=b"\x82\xff\x00\x03" + b"\x00" * 10),
            manner=leaves,
            statuses=(),
        ),
        Abuse(
            act="half a JSON in a socket, then gone",
            ask=shake(hear, after=text),
            manner=Manner(leave_after_s=0.5),
            statuses=(),
        ),
    ]
