"""One connection between two processes that exchange blocks: framed messages, raw bytes, and an end to all waiting."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from sixfold.plugins.llm.kv_handle import PeerGone

MAX_CHUNK_BLOCKS = 1024
"""So that a chunk's checksums fit a frame."""

_MAX_FRAME_BYTES = 1 << 14
_LENGTH_BYTES = 4


class Take(msgspec.Struct, frozen=True, tag="take"):
    """First message of the one who fetches."""

    lease_id: str
    secret: str


class Offer(msgspec.Struct, frozen=True, tag="offer"):
    """The answer: so many blocks of so many bytes, at most ``chunk_blocks`` at once."""

    num_blocks: int
    block_bytes: int
    chunk_blocks: int


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """The answer if there is nothing to be had."""

    reason: str


class Pull(msgspec.Struct, frozen=True, tag="pull"):
    """Asks for the blocks from ``first`` on; the bytes of the chunk before are not needed any more."""

    first: int


class Chunk(msgspec.Struct, frozen=True, tag="chunk"):
    """Announces blocks: a CRC-32 (of zlib) for each."""

    first: int
    checksums: tuple[int, ...]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Last message of the one who fetches: the lease may end."""


FromReader = Take | Pull | Done
FromOwner = Offer | Refusal | Chunk
MessageT = TypeVar("MessageT")

READER = msgspec.msgpack.Decoder(FromReader)
OWNER = msgspec.msgpack.Decoder(FromOwner)
_ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferTimes:
    """How long the two sides of a transfer wait.

    Attributes:
        timeout_s: For the whole of it.
        idle_s: For each part of it, the device's included.
    """

    timeout_s: float
    idle_s: float = 10.0


class Channel:
    """A socket that never waits longer than it may. Used by one thread at a time.

    A frame is its length (4 bytes, big-endian) and a message in msgpack.

    Args:
        sock: Connected; closed with this.
        times: How long it may.
        clock: ``time.monotonic`` or a fake.
    """

    def __init__(self, sock: socket.socket, times: TransferTimes, clock: Callable[[], float]) -> None:
        self.socket = sock
        self._clock = clock
        self._idle_s = times.idle_s
        self._end_s = clock() + times.timeout_s

    @property
    def patience_s(self) -> float:
        """How long the next wait may be.

        Raises:
            PeerGone: The exchange has taken too long.
        """
        left_s = min(self._idle_s, self._end_s - self._clock())
        if left_s <= 0:
            raise PeerGone("The transfer took too long.")
        return left_s

    def send(self, message: msgspec.Struct) -> None:
        """Sends a message.

        Raises:
            PeerGone: The other side is gone or does not read.
        """
        frame = _ENCODER.encode(message)
        self.send_raw(memoryview(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame))

    def receive(self, decoder: msgspec.msgpack.Decoder[MessageT]) -> MessageT:
        """Waits for a message.

        Raises:
            PeerGone: The other side is gone, silent, or sends what is no message.
        """
        length = bytearray(_LENGTH_BYTES)
        self.receive_raw(memoryview(length))
        size = int.from_bytes(length, "big")
        if size > _MAX_FRAME_BYTES:
            raise PeerGone(f"The other side sends a message of {size} bytes; at most {_MAX_FRAME_BYTES} are taken.")
        frame = bytearray(size)
        self.receive_raw(memoryview(frame))
        try:
            return decoder.decode(frame)
        except (ValueError, RecursionError) as error:  # what decoders raise
            raise PeerGone(f"The other side does not speak this protocol: {error}") from error

    def send_raw(self, data: memoryview) -> None:
        """Sends bytes.

        Raises:
            PeerGone: The other side is gone or does not read.
        """
        self.socket.settimeout(self.patience_s)
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise PeerGone(f"The connection broke: {error}") from error

    def receive_raw(self, into: memoryview) -> None:
        """Fills ``into``.

        Raises:
            PeerGone: The other side is gone or silent.
        """
        filled = 0
        while filled < len(into):
            self.socket.settimeout(self.patience_s)
            try:
                count = self.socket.recv_into(into[filled:])
            except OSError as error:
                raise PeerGone(f"The connection broke: {error}") from error
            if not count:
                raise PeerGone("The other side has closed the connection.")
            filled += count

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()
