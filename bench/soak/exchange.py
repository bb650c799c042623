"""One HTTP exchange by a client that may leave, dawdle or send half: what came back, byte for byte.

The client of `sixfold bench` is made to be cheap and polite; this one is made to be neither. Each exchange has a connection of
its own that is read to its end, so that a second answer on it would be seen.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field

import httptools

HANG_S = 120.0
"""An exchange that takes longer is a hang: ten times what the slowest request of the mix takes on a loaded machine."""

_SLOW_READ_BYTES = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request.

    Attributes:
        body: As it is sent.
        content_type: Of the body.
        claimed_bytes: What ``Content-Length`` says; the body's length unless given.
        head: Replaces the whole head.
    """

    method: str = "POST"
    path: str
    body: bytes = b""
    content_type: str = "application/json"
    claimed_bytes: int | None = None
    head: bytes | None = None

    def written(self, request_id: str) -> tuple[bytes, bytes]:
        """Head and body on the wire."""
        if self.head is not None:
            return self.head, self.body
        length = len(self.body) if self.claimed_bytes is None else self.claimed_bytes
        head = (
            f"{self.method} {self.path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\nx-request-id: {request_id}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {length}\r\n\r\n"
        )
        return head.encode(), self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a client behaves.

    Attributes:
        leave_after_s: Hangs up then, with a reset, wherever the answer is.
        leave_after_bytes: Hangs up when so much of the answer has come.
        pause_s: Waits so long before each small piece that it reads.
        sent_share: Sends so much of the body, waits ``stall_s`` and hangs up, where it is below 1.
        stall_s: See there.
    """

    leave_after_s: float | None = None
    leave_after_bytes: int | None = None
    pause_s: float = 0.0
    sent_share: float = 1.0
    stall_s: float = 0.0


POLITE = Manner()


@dataclass(slots=True)
class Reply:
    """What came back.

    Attributes:
        status: 0 where nothing came.
        num_messages: Whole answers on the connection; anything but one is a defect unless the client left.
        left: The client hung up first.
        hung: Nothing ended it within `HANG_S`.
        broken: What was wrong with it as HTTP.
    """

    started_s: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    num_messages: int = 0
    num_begun: int = 0
    ended_s: float = 0.0
    left: bool = False
    hung: bool = False
    broken: str | None = None

    # httptools callbacks

    def on_message_begin(self) -> None:
        self.num_begun += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.num_messages += 1


async def exchange(port: int, ask: Ask, request_id: str, manner: Manner = POLITE) -> Reply:
    """Sends a request and reads until the server hangs up, or the client's manner ends it. Never raises for what servers do."""
    reply = Reply(started_s=time.monotonic())
    limit_s = HANG_S if manner.leave_after_s is None else manner.leave_after_s
    try:
        async with asyncio.timeout(limit_s):
            await _converse(port, ask, request_id, manner, reply)
    except TimeoutError:
        reply.left = manner.leave_after_s is not None
        reply.hung = not reply.left
    except OSError as error:
        reply.broken = f"{type(error).__name__}: {error}"
    reply.ended_s = time.monotonic()
    return reply


async def _converse(port: int, ask: Ask, request_id: str, manner: Manner, reply: Reply) -> None:
    is_slow = manner.pause_s > 0.0
    connection = socket.socket()
    if is_slow:  # else the kernel would take the whole answer in, and no server would notice
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_READ_BYTES)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=_SLOW_READ_BYTES if is_slow else 1 << 16)
    except BaseException:
        connection.close()
        raise
    try:
        head, body = ask.written(request_id)
        writer.write(head + body[: int(len(body) * manner.sent_share)])
        if manner.sent_share < 1.0:
            await writer.drain()
            await asyncio.sleep(manner.stall_s)
            reply.left = True
            return
        await _read(reader, manner, reply)
    finally:
        if reply.left or reply.num_messages != 1:
            writer.transport.abort()
        else:
            writer.close()


async def _read(reader: asyncio.StreamReader, manner: Manner, reply: Reply) -> None:
    parser = httptools.HttpResponseParser(reply)
    num_bytes = 0
    while True:
        if manner.pause_s:
            await asyncio.sleep(manner.pause_s)
        data = await reader.read(_SLOW_READ_BYTES if manner.pause_s else 1 << 16)
        if not data:
            return
        num_bytes += len(data)
        try:
            if reply.status != 101:  # what follows are frames
                parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            reply.broken = f"not HTTP: {error}"
            return
        if reply.num_begun:
            reply.status = parser.get_status_code()
        if manner.leave_after_bytes is not None and num_bytes >= manner.leave_after_bytes and not reply.num_messages:
            reply.left = True
            return
