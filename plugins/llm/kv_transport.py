"""How the bytes of blocks cross from one process to another: the interface, TCP, and which address means what."""

from __future__ import annotations

import socket
from typing import Protocol

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.kv_channel import Channel, Chunk
from sixfold.plugins.llm.kv_handle import PeerGone, PeerNotAllowed

BACKLOG = 64
"""Connections that may wait to be accepted."""


class ChunkSender(Protocol):
    """The owner's end of one transfer."""

    def send(self, chunk: Chunk, data: memoryview) -> None:
        """Brings a chunk over.

        Raises:
            PeerGone: The other side is gone or does not read.
        """
        ...


class ChunkReceiver(Protocol):
    """The reader's end of one transfer."""

    def receive(self, num_bytes: int) -> memoryview:
        """The bytes of the chunk that was announced; valid until the next is pulled.

        Raises:
            PeerGone: The other side is gone or silent.
        """
        ...


class KvTransport(Protocol):
    """A way between two processes; what is said on it is the same for all."""

    def listen(self) -> tuple[socket.socket, str]:
        """A listening socket, and the address that handles shall tell.

        Raises:
            ConfigError: Nothing can listen there.
        """
        ...

    def connect(self, address: str, timeout_s: float) -> socket.socket:
        """A connection to what `listen` told.

        Raises:
            PeerGone: Nobody answers.
            PeerNotAllowed: It is no address of this transport, or belongs to somebody else.
        """
        ...

    def sender(self, channel: Channel, chunk_bytes: int) -> ChunkSender:
        """The owner's end, for chunks of at most so many bytes."""
        ...

    def receiver(self, channel: Channel, chunk_bytes: int) -> ChunkReceiver:
        """The reader's end."""
        ...


class TcpTransport:
    """Raw bytes behind each announcement. Neither encrypted nor hidden from the network: for networks of one owner.

    Args:
        listen: HOST:PORT where this process listens; port 0 takes a free one. None only connects.
    """

    def __init__(self, listen: str | None = None) -> None:
        self._listen = listen

    def listen(self) -> tuple[socket.socket, str]:
        """See `KvTransport`."""
        assert self._listen is not None
        host, port = split_host_port(self._listen)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"kv_transfer.listen: {self._listen!r} can't be bound: {error}. Choose a free port, or 0 for any."
            ) from error
        shown = f"[{host}]" if ":" in host else host
        return sock, f"tcp:{shown}:{sock.getsockname()[1]}"

    def connect(self, address: str, timeout_s: float) -> socket.socket:
        """See `KvTransport`."""
        try:
            host, port = split_host_port(address.removeprefix("tcp:"))
        except ValueError as error:
            raise PeerNotAllowed(f"{address!r} is no address.") from error
        try:
            sock = socket.create_connection((host, port), timeout_s)
        except OSError as error:
            raise PeerGone(f"{address} can't be reached: {error}") from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def sender(self, channel: Channel, chunk_bytes: int) -> ChunkSender:
        """See `KvTransport`."""
        return _TcpSender(channel)

    def receiver(self, channel: Channel, chunk_bytes: int) -> ChunkReceiver:
        """See `KvTransport`."""
        return _TcpReceiver(channel, chunk_bytes)


class _TcpSender:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def send(self, chunk: Chunk, data: memoryview) -> None:
        self._channel.send(chunk)
        self._channel.send_raw(data)


class _TcpReceiver:
    def __init__(self, channel: Channel, chunk_bytes: int) -> None:
        self._channel = channel
        self._memory = memoryview(bytearray(chunk_bytes))

    def receive(self, num_bytes: int) -> memoryview:
        self._channel.receive_raw(self._memory[:num_bytes])
        return self._memory[:num_bytes]


def transport_of(address: str) -> KvTransport:
    """The transport that reaches an address of a handle.

    Raises:
        PeerNotAllowed: There is none.
    """
    if address.startswith("tcp:"):
        return TcpTransport()
    if address.startswith("shm:"):
        return _shared_memory()
    raise PeerNotAllowed(f"{address[:100]!r} is no address of a transport that is known here.")


def listening_transport(listen: str) -> KvTransport:
    """The transport of the option ``listen``."""
    return _shared_memory() if listen == "shm" else TcpTransport(listen)


def _shared_memory() -> KvTransport:
    # Here, since what it imports is on Unix only, and TCP is everywhere.
    from sixfold.plugins.llm.kv_shared_memory import SharedMemoryTransport

    return SharedMemoryTransport()


def split_host_port(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[HOST]:PORT``.

    Raises:
        ValueError: It is not.
    """
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host, int(port)
