"""Who asked for what and how it ended: one row a request, and exactly one end for each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from exchange import Reply

READS_SLOWLY = "reads slowly"
"""Ends the act of a client that takes its time."""


class End(StrEnum):
    """How a request ended, as its client saw it."""

    ANSWERED = "answered"  # whole, and with the known content
    REFUSED = "refused"  # 429 or 503 before any work, in our error's shape, with a time to come back
    FAILED = "failed clearly"  # an error of ours after it was accepted, as a status, a frame, or a cut stream of bytes
    REJECTED = "rejected"  # what was malformed, with a status that says so
    LEFT = "client left"
    WRONG = "wrong"  # a defect


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request.

    Attributes:
        modality: Of the model that it named, or ``abuse``.
        act: What the client did.
        began_s: Monotonic seconds.
        ended_s: Likewise.
        code: ``error.code`` of what the server said, where it said something.
        problem: What is wrong, where something is.
    """

    modality: str
    act: str
    began_s: float
    ended_s: float
    end: End
    code: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a reply means."""

    end: End
    code: str | None = None
    problem: str | None = None


class Ledger:
    """All rows, and what is under way. Used in one event loop."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._next_id = 0
        self._open: dict[str, tuple[str, str, float]] = {}

    def begin(self, modality: str, act: str, now_s: float) -> str:
        """The id under which a request is sent."""
        self._next_id += 1
        request_id = f"soak-{self._next_id}"
        self._open[request_id] = (modality, act, now_s)
        return request_id

    def end(self, request_id: str, verdict: Verdict, now_s: float) -> Row:
        """Counts the one end of a request.

        Raises:
            KeyError: It has ended before: the harness is wrong.
        """
        modality, act, began_s = self._open.pop(request_id)
        row = Row(
            modality=modality, act=act, began_s=began_s, ended_s=now_s,
            end=verdict.end, code=verdict.code, problem=verdict.problem,
        )  # fmt: skip
        self.rows.append(row)
        return row

    @property
    def num_open(self) -> int:
        """Requests without an end."""
        return len(self._open)

    def counts(self) -> dict[str, Counter[str]]:
        """Ends by modality."""
        found: dict[str, Counter[str]] = {}
        for row in self.rows:
            found.setdefault(row.modality, Counter())[row.end.value] += 1
        return found


def refusal_of(reply: Reply) -> Verdict | None:
    """What an error status means; None for 200.

    An error must have OpenAI's shape with all four keys; a 429 or 503 must say when to come back; 500 is never right here, since
    no request of the mix should make a model fail.
    """
    if reply.status in (200, 201):
        return None
    error = error_of(bytes(reply.body))
    if error is None:
        return _wrong(f"{reply.status} without an error in our shape: {bytes(reply.body[:120])!r}")
    code = error["code"]
    if reply.status in (429, 503) and "retry-after" not in reply.headers:
        return _wrong(f"{reply.status} {code} without Retry-After")
    if reply.status == 429 or (reply.status == 503 and code != "worker_died"):
        return Verdict(end=End.REFUSED, code=code)
    if reply.status in (503, 504):
        return Verdict(end=End.FAILED, code=code)
    if reply.status >= 500:
        return _wrong(f"{reply.status} {code}: {error['message']}")
    return Verdict(end=End.REJECTED, code=code)


def transport_problem(reply: Reply, request_id: str) -> str | None:
    """What is wrong with a reply before its content is looked at."""
    if reply.hung:
        return "no end"
    if reply.broken is not None and not reply.left:
        return reply.broken
    if reply.left:
        return None
    if reply.num_begun != 1:
        return f"{reply.num_begun} answers on one connection" if reply.num_begun else "no answer"
    if reply.headers.get("x-request-id", request_id) != request_id:
        return f"the answer of {reply.headers['x-request-id']}"
    return None


def error_of(body: bytes) -> Mapping[str, Any] | None:
    """The error in a body, if it has our shape."""
    try:
        found = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) and found.keys() >= {"message", "type", "param", "code"} else None


def events_of(body: bytes) -> list[bytes]:
    """The data of each frame of an event stream, in order."""
    frames = bytes(body).replace(b"\r\n", b"\n").split(b"\n\n")
    return [
        b"\n".join(line[5:].strip() for line in frame.split(b"\n") if line.startswith(b"data:"))
        for frame in frames
        if b"data:" in frame
    ]


def stream_failure(events: Sequence[bytes]) -> Mapping[str, Any] | None:
    """The error frame of a stream, if it has one."""
    return next((error for event in events if event.startswith(b'{"error"') and (error := error_of(event))), None)


def _wrong(problem: str) -> Verdict:
    return Verdict(end=End.WRONG, problem=problem)
