"""Hands leased blocks to other processes, outside of the device thread."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
import zlib
from collections.abc import Callable

from torch import Tensor

from sixfold.plugins.llm.device_inbox import DeviceInbox, InboxClosed
from sixfold.plugins.llm.host_copy import HostCopy
from sixfold.plugins.llm.kv_channel import (
    MAX_CHUNK_BLOCKS,
    READER,
    Channel,
    Chunk,
    Done,
    Offer,
    Pull,
    Refusal,
    Take,
    TransferTimes,
)
from sixfold.plugins.llm.kv_exports import KvExports, Lease
from sixfold.plugins.llm.kv_handle import KvTransferError, LeaseExpired, PeerGone
from sixfold.plugins.llm.kv_transport import KvTransport
from sixfold.plugins.llm.tensors import host_bytes

_LOG = logging.getLogger(__name__)

# On a CPU, a step waits for the copy of a chunk: some milliseconds at several GB/s.
_CHUNK_BYTES = 16 << 20
# Elsewhere no step waits for it, but each chunk for a step.
_CHUNK_BYTES_OF_DEVICES = 32 << 20
_MAX_CONNECTIONS = 32
# How late an idle device may let go of what has expired.
_EXPIRY_S = 1.0
_RETRY_S = 0.1


class KvServer:
    """Listens in a thread of its own; one more thread a transfer.

    Args:
        transport: Where it listens.
        exports: Has the leases; asked on the device thread.
        inbox: Of the device thread.
        block_bytes: Of one block.
        times: Bounds of a transfer.
        clock: ``time.monotonic`` or a fake.

    Raises:
        ConfigError: Nothing can listen there.
    """

    def __init__(
        self,
        transport: KvTransport,
        exports: KvExports,
        inbox: DeviceInbox,
        *,
        block_bytes: int,
        times: TransferTimes,
        clock: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._exports = exports
        self._inbox = inbox
        self._block_bytes = block_bytes
        chunk_bytes = _CHUNK_BYTES if exports.device.type == "cpu" else _CHUNK_BYTES_OF_DEVICES
        self._chunk_blocks = max(1, min(MAX_CHUNK_BLOCKS, chunk_bytes // block_bytes))
        self._times = times
        self._clock = clock
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._listener, self.address = transport.listen()
        self._listener.setblocking(False)
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._thread = threading.Thread(target=self._accept_all, name="kv-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Breaks what runs and ends all threads. The inbox must be closed before. [device]"""
        self._stop_writer.close()
        self._thread.join()
        with self._lock:
            connections = dict(self._connections)
            for sock in connections:
                with contextlib.suppress(OSError):  # the other side was first
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in connections.values():
            thread.join()

    def _accept_all(self) -> None:
        with self._stop_reader, self._listener, selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stop_reader, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _events in selector.select(_EXPIRY_S)]
                if self._stop_reader in ready:
                    return
                if self._listener in ready:
                    self._accept()
                elif self._exports.num_held_blocks:  # a device without requests makes no turns of its own
                    self._inbox.post(self._exports.expire)

    def _accept(self) -> None:
        try:
            sock, _address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it went away before it was accepted
            return
        except OSError as error:
            _LOG.warning("a transfer of cached blocks can't be accepted: %s", error)
            time.sleep(_RETRY_S)  # it still waits, and descriptors may become free
            return
        self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        with self._lock:
            if len(self._connections) >= _MAX_CONNECTIONS:
                _LOG.warning("a transfer of cached blocks is refused: %d are running", _MAX_CONNECTIONS)
                sock.close()
                return
            thread = threading.Thread(target=self._serve, args=(sock,), name="kv-transfer", daemon=True)
            self._connections[sock] = thread
        thread.start()

    def _serve(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel = Channel(sock, self._times, self._clock)
        try:
            self._answer(channel)
        except (KvTransferError, InboxClosed) as error:
            _LOG.info("a transfer of cached blocks ended early: %s", error)
        except Exception:
            _LOG.exception("a transfer of cached blocks failed")
        finally:
            with self._lock:
                del self._connections[sock]
                channel.close()

    def _answer(self, channel: Channel) -> None:
        take = channel.receive(READER)
        if not isinstance(take, Take):
            raise PeerGone("The other side does not begin with what it wants to take.")
        try:
            lease = self._inbox.call(lambda: self._exports.open(take.lease_id, take.secret), channel.patience_s)
        except LeaseExpired as error:
            channel.send(Refusal(str(error)))
            return
        is_taken = False
        try:
            self._send_blocks(channel, lease)
            is_taken = True
        except LeaseExpired as error:
            channel.send(Refusal(str(error)))
        finally:
            self._inbox.post(lambda: self._exports.close(lease, is_taken=is_taken))

    def _send_blocks(self, channel: Channel, lease: Lease) -> None:
        chunk_blocks = min(self._chunk_blocks, len(lease.block_ids))
        channel.send(Offer(len(lease.block_ids), self._block_bytes, chunk_blocks))
        sender = self._transport.sender(channel, chunk_blocks * self._block_bytes)
        while True:
            wanted = channel.receive(READER)
            if isinstance(wanted, Done):
                return
            if not isinstance(wanted, Pull) or not 0 <= wanted.first < len(lease.block_ids):
                raise PeerGone("The other side asks for what was not offered.")
            blocks = self._read(lease, wanted.first, channel.patience_s)
            data = host_bytes(blocks)
            size = self._block_bytes
            checksums = tuple(zlib.crc32(data[i : i + size]) for i in range(0, len(data), size))
            sender.send(Chunk(wanted.first, checksums), data)

    def _read(self, lease: Lease, first: int, patience_s: float) -> Tensor:
        """On the host. The device thread begins the copy; this one waits for it, and no step does."""
        read = self._exports.read
        return self._inbox.call(lambda: HostCopy(read(lease, first, self._chunk_blocks)), patience_s).wait()
