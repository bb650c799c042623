"""Requests whose answers are known: each is asked once alone, and must be answered so ever after, whoever shares its batch."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from exchange import Ask, Reply, exchange
from ledger import End, Verdict, events_of, refusal_of, stream_failure, transport_problem
from numpy.typing import NDArray
from PIL import Image

CLIP = Path(__file__).resolve().parents[2] / "tests" / "data" / "librivox" / "0880.flac"
SENTENCES = ("The ward is quiet tonight.", "Please call the nurse at once.")
SCENES = (
    "a small red circle above a large blue square on a green background",
    "two small red circles on a blue background",
)
TEXTS = ("The patient has no known allergy to penicillin.", "Where is the station?", "Rain is expected in the evening.")
QUESTIONS = (
    "What is the capital of France?",
    "Count from one to ten.",
    "Name three colours.",
    "What do bees make?",
)


class Unreadable(Exception):
    """An answer that is not what its route promises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A request and how its answer is read.

    Attributes:
        modality: Name of the model.
        act: What it is, for the report.
        ask: The request.
        read: Takes what matters out of a whole answer; raises `Unreadable`.
        same: Compares two of these.
        is_stream: It comes in parts.
        may_be_cut: Its stream is bare bytes: a failure can only cut it.
    """

    modality: str
    act: str
    ask: Ask
    read: Callable[[bytes], Any]
    same: Callable[[Any, Any], bool] = field(default=lambda one, other: bool(one == other))
    is_stream: bool = False
    may_be_cut: bool = False


class Corpus:
    """All known requests with their answers."""

    def __init__(self) -> None:
        self.known = tuple(_all_known())
        self._answers: dict[int, Any] = {}

    def of(self, modality: str) -> Sequence[Known]:
        """Those of one model."""
        return [known for known in self.known if known.modality == modality]

    async def learn(self, port: int) -> None:
        """Asks each alone.

        Raises:
            RuntimeError: One was not answered.
        """
        for known in self.known:
            reply = await exchange(port, known.ask, "learn")
            if transport_problem(reply, "learn") or refusal_of(reply) is not None:
                raise RuntimeError(f"{known.modality} {known.act}: {reply.status} {bytes(reply.body[:300])!r}")
            self._answers[id(known)] = known.read(bytes(reply.body))

    def judge(self, known: Known, reply: Reply, request_id: str) -> Verdict:
        """What the end of an exchange means."""
        problem = transport_problem(reply, request_id)
        if problem is not None:
            return Verdict(end=End.WRONG, problem=problem)
        if reply.left:
            return Verdict(end=End.LEFT)
        refusal = refusal_of(reply)
        if refusal is not None:
            is_ours = refusal.end is not End.REJECTED  # a request of the corpus is well formed
            return (
                refusal if is_ours else Verdict(end=End.WRONG, code=refusal.code, problem="a good request was rejected")
            )
        body = bytes(reply.body)
        if reply.num_messages != 1:
            if known.may_be_cut:
                return Verdict(end=End.FAILED, code="cut")
            return Verdict(end=End.WRONG, problem="torn answer")
        return self._judge_whole(known, body)

    def _judge_whole(self, known: Known, body: bytes) -> Verdict:
        if known.is_stream and not known.may_be_cut:
            events = events_of(body)
            failure = stream_failure(events)
            if failure is not None:
                ends_well = events.count(b"[DONE]") == 1 and events[-1] == b"[DONE]"
                problem = None if ends_well else "an error frame without the end of the stream after it"
                return Verdict(end=End.FAILED if ends_well else End.WRONG, code=failure["code"], problem=problem)
        try:
            found = known.read(body)
        except (Unreadable, ValueError, KeyError, IndexError, TypeError, OSError) as error:
            return Verdict(end=End.WRONG, problem=f"{type(error).__name__}: {error}")
        if not known.same(found, self._answers[id(known)]):
            return Verdict(end=End.WRONG, problem=f"another answer than alone: {str(found)[:80]!r}")
        return Verdict(end=End.ANSWERED)


def json_ask(path: str, body: Mapping[str, Any]) -> Ask:
    """A request with a JSON body."""
    return Ask(path=path, body=json.dumps(body).encode())


def form_ask(path: str, fields: Mapping[str, str], file: bytes, name: str = "clip.flac") -> Ask:
    """A form with one file."""
    edge = "soak-edge-7f3a"
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    body = b"".join(parts) + head + file + f"\r\n--{edge}--\r\n".encode()
    return Ask(path=path, body=body, content_type=f"multipart/form-data; boundary={edge}")


def _all_known() -> list[Known]:
    return [*_chats(), *_embeddings(), *_speech(), *_transcriptions(), *_pictures()]


def _chats() -> list[Known]:
    found: list[Known] = []
    for question in QUESTIONS:
        body = {
            "model": "chat",
            "temperature": 0,
            "max_tokens": 24,
            "messages": [{"role": "user", "content": question}],
        }
        whole = json_ask("/v1/chat/completions", body)
        stream = json_ask("/v1/chat/completions", {**body, "stream": True})
        found += [
            Known(modality="chat", act="whole", ask=whole, read=_read_chat),
            Known(modality="chat", act="stream", ask=stream, read=_read_chat_stream, is_stream=True),
        ]
    return found


def _embeddings() -> list[Known]:
    def same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
        return one.shape == other.shape and bool(np.abs(one - other).max() < 1e-4)

    lists: list[Any] = [*TEXTS, list(TEXTS) * 4]
    return [
        Known(
            modality="embed",
            act="whole",
            ask=json_ask("/v1/embeddings", {"model": "embed", "input": given}),
            read=_read_vectors,
            same=same,
        )
        for given in lists
    ]


def _speech() -> list[Known]:
    return [
        Known(
            modality="speak",
            act="stream",
            is_stream=True,
            may_be_cut=True,
            read=_read_sound,
            ask=json_ask(
                "/v1/audio/speech", {"model": "speak", "voice": "alloy", "input": text, "response_format": "pcm"}
            ),
        )
        for text in SENTENCES
    ]


def _transcriptions() -> list[Known]:
    fields = {"model": "hear", "language": "en"}
    path = "/v1/audio/transcriptions"
    sound = CLIP.read_bytes()
    return [
        Known(
            modality="hear",
            act="whole",
            ask=form_ask(path, fields, sound),
            read=lambda body: str(json.loads(body)["text"]),
        ),
        Known(
            modality="hear",
            act="stream",
            ask=form_ask(path, {**fields, "stream": "true"}, sound),
            read=lambda body: _last_event(body, "transcript.text.done")["text"],
            is_stream=True,
        ),
    ]


def _pictures() -> list[Known]:
    def same(one: NDArray[np.int16], other: NDArray[np.int16]) -> bool:
        # Rows of one batch differ by rounding: a step of eight bits.
        return one.shape == other.shape and bool(np.abs(one - other).max() <= 1)

    found: list[Known] = []
    for scene in SCENES:
        body = {"model": "draw", "prompt": scene, "size": "64x64", "seed": 3, "num_inference_steps": 8}
        whole = json_ask("/v1/images/generations", {**body, "response_format": "b64_json"})
        stream = json_ask("/v1/images/generations", {**body, "stream": True, "partial_images": 1})
        found += [
            Known(modality="draw", act="whole", ask=whole, same=same, read=_read_picture),
            Known(modality="draw", act="stream", ask=stream, same=same, read=_read_streamed_picture, is_stream=True),
        ]
    return found


def _read_chat(body: bytes) -> tuple[str, str]:
    choices = json.loads(body)["choices"]
    if len(choices) != 1:
        raise Unreadable(f"{len(choices)} choices")
    return choices[0]["message"]["content"], choices[0]["finish_reason"]


def _read_chat_stream(body: bytes) -> tuple[str, str]:
    *events, last = events_of(body)
    if last != b"[DONE]" or b"[DONE]" in events:
        raise Unreadable("the stream does not end once")
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]
    if len(reasons) != 1 or choices[-1]["finish_reason"] is None:
        raise Unreadable(f"{len(reasons)} finish reasons")
    return "".join(choice["delta"].get("content") or "" for choice in choices), reasons[0]


def _read_vectors(body: bytes) -> NDArray[np.float32]:
    rows = sorted(json.loads(body)["data"], key=lambda row: row["index"])
    return np.array([row["embedding"] for row in rows], dtype=np.float32)


def _read_sound(body: bytes) -> bytes:
    if len(body) < 4800 or len(body) % 2:  # a tenth of a second of 16-bit samples
        raise Unreadable(f"{len(body)} bytes of sound")
    return body


def _read_picture(body: bytes) -> NDArray[np.int16]:
    (picture,) = json.loads(body)["data"]
    return _pixels(picture["b64_json"])


def _read_streamed_picture(body: bytes) -> NDArray[np.int16]:
    return _pixels(_last_event(body, "image_generation.completed")["b64_json"])


def _last_event(body: bytes, kind: str) -> Any:
    found = [json.loads(event) for event in events_of(body) if event != b"[DONE]"]
    last = [event for event in found if event.get("type") == kind]
    if len(last) != 1 or found[-1] is not last[0]:
        raise Unreadable(f"{len(last)} events of {kind}")
    return last[0]


def _pixels(encoded: str) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"), dtype=np.int16)
