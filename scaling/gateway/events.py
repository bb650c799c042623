"""Server-sent events passed on whole: a stream that breaks must not leave half an event before what is said about it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from sixfold.scaling.gateway.resume import Diverged, Replay, StreamRecord
from sixfold.scaling.gateway.upstream import Answer

_MAX_HELD_BYTES = 4 * 1024 * 1024


class WholeEvents:
    """Cuts a stream of bytes at the ends of events. Chunks of servers hold whole events, so nothing is usually held."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may be passed on now: everything up to the end of the last whole event.

        An event of more than 4 MiB is passed on in parts.
        """
        whole = self._held + chunk if self._held else chunk
        if whole.endswith((b"\n\n", b"\r\n\r\n")) or len(whole) > _MAX_HELD_BYTES:
            self._held = b""
            return whole
        end = max((whole.rfind(end) + len(end) for end in (b"\n\n", b"\r\n\r\n") if end in whole), default=0)
        self._held = whole[end:]
        return whole[:end]

    def rest(self) -> bytes:
        """What is held when the stream has ended in good order."""
        held, self._held = self._held, b""
        return held


class SendPart(Protocol):
    """Sends a part of the body; nothing for an empty one."""

    def __call__(self, part: bytes, *, more: bool) -> Awaitable[None]:
        """Sends it; ``more`` says that others follow."""
        ...


class EventStream:
    """One client's stream of events, fed from one replica after the other.

    Args:
        send: To the client.
        record: Takes note of what is sent; None where the stream can't go on elsewhere.
    """

    def __init__(self, send: SendPart, record: StreamRecord | None) -> None:
        self._send = send
        self._record = record

    async def pass_on(self, answer: Answer) -> None:
        """Sends a first answer's events as they come.

        Raises:
            AnswerTorn: It broke; nothing but whole events was sent.
        """
        whole = WholeEvents()
        await self._pass(whole.feed(answer.first))
        async for chunk in answer.rest():
            await self._pass(whole.feed(chunk))
        await self._pass(whole.rest())

    async def resume(self, answer: Answer) -> None:
        """Sends what is new in a further answer.

        Raises:
            AnswerTorn: It broke, too.
            Diverged: It is another answer.
        """
        assert self._record is not None
        if answer.status != 200 or not (answer.header("content-type") or "").startswith("text/event-stream"):
            raise Diverged
        whole = WholeEvents()
        replay = Replay(self._record)
        await self._send(replay.cut(whole.feed(answer.first)), more=True)
        async for chunk in answer.rest():
            await self._send(replay.cut(whole.feed(chunk)), more=True)
        await self._send(replay.cut(whole.rest()), more=True)

    async def _pass(self, frames: bytes) -> None:
        if self._record is not None:
            self._record.feed(frames)
        await self._send(frames, more=True)
