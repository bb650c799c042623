"""Fetches the blocks of a handle from the process that computed them, outside of the device thread."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

from sixfold.plugins.llm.device_inbox import DeviceInbox, InboxClosed
from sixfold.plugins.llm.kv_channel import (
    MAX_CHUNK_BLOCKS,
    OWNER,
    Channel,
    Chunk,
    Done,
    FromOwner,
    Offer,
    Pull,
    Refusal,
    Take,
    TransferTimes,
)
from sixfold.plugins.llm.kv_handle import DamagedBlock, KvHandle, LeaseExpired, PeerGone
from sixfold.plugins.llm.kv_import import KvImport
from sixfold.plugins.llm.kv_transport import transport_of
from sixfold.plugins.llm.tensors import from_bytes

_CONNECT_TIMEOUT_S = 2.0
_MAX_CHUNK_BYTES = 1 << 30


def fetch_blocks(
    handle: KvHandle,
    target: KvImport,
    *,
    num_blocks: int,
    block_bytes: int,
    inbox: DeviceInbox,
    times: TransferTimes,
    clock: Callable[[], float],
) -> int:
    """Brings over what is not here yet; what came before a failure stays. Called in a pool thread.

    Args:
        handle: Proved to be of this model and prompt, and of a peer that may be asked.
        target: Where the blocks go; used and ended on the device thread.
        num_blocks: Of the handle.
        block_bytes: Of each.
        inbox: Of the device thread.
        times: Bounds of the transfer.
        clock: ``time.monotonic`` or a fake.

    Returns:
        How many blocks came; fewer than are missing if the cache has no room.

    Raises:
        KvTransferError: Says why the rest could not be had.
    """
    channel = None
    try:
        num_here = inbox.call(target.begin, times.idle_s)
        # Also when nothing is missing: the owner learns that it need not wait.
        sock = transport_of(handle.address).connect(handle.address, _CONNECT_TIMEOUT_S)
        channel = Channel(sock, times, clock)
        channel.send(Take(handle.lease_id, handle.secret))
        offer = _offer(channel)
        if (offer.num_blocks, offer.block_bytes) != (num_blocks, block_bytes):
            raise PeerGone("The other side offers other blocks than its handle.")
        num_came = _pull(channel, handle, offer, target, inbox, first=num_here)
        channel.send(Done())
    except InboxClosed as error:
        raise PeerGone(f"This side could not take the blocks: {error}") from error
    finally:
        inbox.post(target.end)
        if channel is not None:
            channel.close()
    return num_came


def _answer(channel: Channel) -> FromOwner:
    answer: FromOwner = channel.receive(OWNER)
    if isinstance(answer, Refusal):
        raise LeaseExpired(answer.reason[:200])
    return answer


def _offer(channel: Channel) -> Offer:
    answer = _answer(channel)
    if not isinstance(answer, Offer):
        raise PeerGone("The other side offers nothing.")
    if not (
        0 < answer.chunk_blocks <= MAX_CHUNK_BLOCKS and answer.chunk_blocks * answer.block_bytes <= _MAX_CHUNK_BYTES
    ):
        raise PeerGone("The other side offers chunks that are too large.")
    return answer


def _pull(channel: Channel, handle: KvHandle, offer: Offer, target: KvImport, inbox: DeviceInbox, *, first: int) -> int:
    """Invariant: all blocks before ``place`` are in the cache, verified."""
    size = offer.block_bytes
    receiver = transport_of(handle.address).receiver(channel, offer.chunk_blocks * size)
    place = first
    while place < offer.num_blocks:
        channel.send(Pull(place))
        chunk = _answer(channel)
        count = min(offer.chunk_blocks, offer.num_blocks - place)
        if not isinstance(chunk, Chunk) or chunk.first != place or len(chunk.checksums) != count:
            raise PeerGone("The other side sends other blocks than it was asked for.")
        data = receiver.receive(count * size)
        for i, checksum in enumerate(chunk.checksums):
            if zlib.crc32(data[i * size : (i + 1) * size]) != checksum:
                raise DamagedBlock(f"Block {place + i} of {offer.num_blocks} was damaged on its way.")
        blocks = target.bring(from_bytes(data, size))
        num_written = inbox.call(partial(target.write, blocks), channel.patience_s)
        place += num_written
        if num_written < count:
            break
    return place - first
