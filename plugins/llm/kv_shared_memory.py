"""Cache blocks through memory of one host.

The memory has no name: the owner makes a memory file (memfd), and passes its descriptor over a Unix socket in the abstract
namespace. The kernel frees both with the last process that has them open, whichever dies first and however, so there is
nothing to unlink and nothing to sweep. (A segment of ``multiprocessing.shared_memory`` has a name that outlives its owner's
crash.) One chunk's memory is reused for all chunks of a transfer.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import secrets
import socket
import struct
import sys

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.kv_channel import Channel, Chunk
from sixfold.plugins.llm.kv_handle import PeerGone, PeerNotAllowed
from sixfold.plugins.llm.kv_transport import BACKLOG, ChunkReceiver, ChunkSender

_SHM_NAME = re.compile(r"[0-9a-f]{16}")
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class SharedMemoryTransport:
    """Memory of one Linux host, between processes of one user (and one network namespace: not between containers)."""

    def listen(self) -> tuple[socket.socket, str]:
        """See `KvTransport`."""
        if sys.platform != "linux":
            raise ConfigError("kv_transfer.listen: shm needs Linux. Set HOST:PORT, such as 127.0.0.1:0.")
        name = secrets.token_hex(8)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(_abstract(name))
        sock.listen(BACKLOG)
        return sock, f"shm:{name}"

    def connect(self, address: str, timeout_s: float) -> socket.socket:
        """See `KvTransport`."""
        name = address.removeprefix("shm:")
        if sys.platform != "linux" or not _SHM_NAME.fullmatch(name):
            raise PeerNotAllowed(f"{address!r} is no address of shared memory on this host.")
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout_s)
        try:
            sock.connect(_abstract(name))
        except OSError as error:
            sock.close()
            raise PeerGone(f"{address} can't be reached: {error}") from error
        # Anybody on the host may listen under any abstract name.
        _pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.getuid():
            sock.close()
            raise PeerNotAllowed(f"{address} belongs to another user.")
        return sock

    def sender(self, channel: Channel, chunk_bytes: int) -> ChunkSender:
        """See `KvTransport`."""
        return _MemorySender(channel, chunk_bytes)

    def receiver(self, channel: Channel, chunk_bytes: int) -> ChunkReceiver:
        """See `KvTransport`."""
        return _MemoryReceiver(channel, chunk_bytes)


class _MemorySender:
    def __init__(self, channel: Channel, chunk_bytes: int) -> None:
        self._channel = channel
        descriptor = os.memfd_create("sixfold-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, chunk_bytes)
            # A reader of memory that shrinks under it dies of SIGBUS.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._memory = memoryview(mmap.mmap(descriptor, chunk_bytes))
            channel.socket.settimeout(channel.patience_s)
            socket.send_fds(channel.socket, [b"m"], [descriptor])
        except OSError as error:
            raise PeerGone(f"The memory could not be handed over: {error}") from error
        finally:
            os.close(descriptor)

    def send(self, chunk: Chunk, data: memoryview) -> None:
        self._memory[: len(data)] = data
        self._channel.send(chunk)


class _MemoryReceiver:
    def __init__(self, channel: Channel, chunk_bytes: int) -> None:
        channel.socket.settimeout(channel.patience_s)
        descriptors: list[int] = []
        try:
            _byte, descriptors, _flags, _address = socket.recv_fds(channel.socket, 1, 1, socket.MSG_CMSG_CLOEXEC)
            if len(descriptors) != 1:
                raise PeerGone("The other side has handed over no memory.")
            seals = fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS)
            if not seals & fcntl.F_SEAL_SHRINK or os.fstat(descriptors[0]).st_size < chunk_bytes:
                raise PeerGone("The memory that was handed over is too small, or could become so.")
            self._memory = memoryview(mmap.mmap(descriptors[0], chunk_bytes))
        except OSError as error:
            raise PeerGone(f"The memory could not be taken over: {error}") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def receive(self, num_bytes: int) -> memoryview:
        return self._memory[:num_bytes]


def _abstract(name: str) -> str:
    return f"\0sixfold-kv-{name}"
