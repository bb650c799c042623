"""What takes more than one exchange: a clip that is ordered, watched, fetched and deleted, and a live session."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import av
import numpy as np
import websockets
from corpus import CLIP, json_ask
from exchange import Ask, exchange
from ledger import End, Verdict, refusal_of, transport_problem
from numpy.typing import NDArray

_FILM = {"model": "film", "prompt": "a large red ball moving right on a white background", "seed": 1}
_POLL_S = 0.1
_END_S = 120.0


class Filming:
    """Orders the same clip again and again; its first one is what the others must be.

    Args:
        port: Of the server.
    """

    modality = "film"
    act = "job"

    def __init__(self, port: int) -> None:
        self._port = port
        self._clip: NDArray[np.uint8] | None = None

    async def play(self, leaves_at: float | None = None) -> Verdict:
        """One clip; with a share of two seconds it is deleted then, made or not."""
        made = await self._json(json_ask("/v1/videos", _FILM))
        if isinstance(made, Verdict):
            return made
        path = f"/v1/videos/{made['id']}"
        now_s = time.monotonic()
        until_s = now_s + _END_S
        leaves_s = until_s if leaves_at is None else now_s + 2.0 * leaves_at
        state: Any = made
        while state["status"] in ("queued", "in_progress") and time.monotonic() < leaves_s:
            await asyncio.sleep(_POLL_S)
            state = await self._json(Ask(method="GET", path=path))
            if isinstance(state, Verdict):
                return state
        verdict = await self._look_at(path, state, left=leaves_at is not None)
        gone = await self._json(Ask(method="DELETE", path=path))
        again = await exchange(self._port, Ask(method="GET", path=path), "gone")
        if isinstance(gone, Verdict) or again.status != 404:
            return Verdict(end=End.WRONG, problem=f"a deleted clip is there: {again.status}")
        return verdict

    async def _look_at(self, path: str, state: Mapping[str, Any], *, left: bool) -> Verdict:
        if state["status"] == "failed":
            error = state["error"]
            return Verdict(end=End.FAILED, code=error["code"])
        if state["status"] != "completed":
            return Verdict(end=End.LEFT) if left else Verdict(end=End.WRONG, problem="a clip without end")
        reply = await exchange(self._port, Ask(method="GET", path=f"{path}/content"), "content")
        problem = transport_problem(reply, "content")
        if problem is not None or reply.status != 200 or reply.num_messages != 1:
            return Verdict(end=End.WRONG, problem=f"no clip: {problem or reply.status}")
        frames = await asyncio.to_thread(_frames, bytes(reply.body))
        self._clip = frames if self._clip is None else self._clip
        if frames.shape != self._clip.shape or np.abs(frames.astype(int) - self._clip.astype(int)).mean() > 2.0:
            return Verdict(end=End.WRONG, problem=f"another clip than alone: {frames.shape}")
        return Verdict(end=End.ANSWERED)

    async def _json(self, ask: Ask) -> Any:
        """The JSON of an answer, or what is to be said of it."""
        reply = await exchange(self._port, ask, "step")
        problem = transport_problem(reply, "step")
        if problem is None and reply.num_messages != 1:
            problem = "torn answer"
        if problem is not None:
            return Verdict(end=End.WRONG, problem=problem)
        return refusal_of(reply) or json.loads(reply.body)


class Talking:
    """Speaks the same recording into a live session; the first text is what the others must be.

    Args:
        port: Of the server.
    """

    modality = "hear"
    act = "socket"

    def __init__(self, port: int) -> None:
        self._port = port
        self._heard: str | None = None
        self._sound = _at_24_khz()

    async def play(self, leaves_at: float | None = None) -> Verdict:
        """One session; with a share of its events the client is gone without a word after so many."""
        try:
            async with asyncio.timeout(_END_S):
                url = f"ws://127.0.0.1:{self._port}/v1/realtime?model=hear"
                async with websockets.connect(url, open_timeout=_END_S, close_timeout=5) as connection:
                    return await self._session(connection, leaves_at)
        except TimeoutError:
            return Verdict(end=End.WRONG, problem="a session without end")
        except websockets.InvalidStatus as error:
            status = error.response.status_code
            return _closed(status in (429, 503), f"handshake: {status}")
        except websockets.ConnectionClosed as error:
            return _closed(error.rcvd is not None and bool(error.rcvd.reason), str(error))
        except OSError as error:
            return _closed(False, str(error))

    async def _session(self, connection: Any, leaves_at: float | None) -> Verdict:
        heard = {"turn_detection": None, "transcription": {"model": "hear", "language": "en"}}
        events = [
            {"type": "session.update", "session": {"type": "transcription", "audio": {"input": heard}}},
            *({"type": "input_audio_buffer.append", "audio": part} for part in self._sound),
            {"type": "input_audio_buffer.commit"},
        ]
        sent = len(events) if leaves_at is None else 1 + int(leaves_at * len(events))
        for event in events[:sent]:
            await connection.send(json.dumps(event))
        if leaves_at is not None:
            connection.transport.abort()
            return Verdict(end=End.LEFT)
        async for message in connection:
            event = json.loads(message)
            if event["type"] == "error" or event["type"].endswith(".failed"):
                return Verdict(end=End.FAILED, code=event["error"]["code"])
            if event["type"].endswith("transcription.completed"):
                self._heard = self._heard or event["transcript"]
                if event["transcript"] != self._heard:
                    return Verdict(end=End.WRONG, problem=f"heard {event['transcript'][:60]!r}")
                return Verdict(end=End.ANSWERED)
        return Verdict(end=End.WRONG, problem="a session that ends without its text")


def _closed(is_clear: bool, how: str) -> Verdict:
    """A session that the server ended: with a status or a reason, or without a word."""
    return Verdict(end=End.FAILED, code="socket") if is_clear else Verdict(end=End.WRONG, problem=how)


def _frames(data: bytes) -> NDArray[np.uint8]:
    opened: Any = av
    with opened.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _at_24_khz() -> Sequence[str]:
    """The recording as a live session wants it, in pieces."""
    opened: Any = av
    resampler = opened.AudioResampler(format="s16", layout="mono", rate=24_000)
    with opened.open(str(CLIP)) as container:
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in [*frames, *resampler.resample(None)]])
    sound = samples.astype("<i2").tobytes()
    return [base64.b64encode(sound[at : at + 48_000]).decode() for at in range(0, len(sound), 48_000)]
