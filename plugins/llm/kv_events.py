"""Tells routers which prefixes this replica holds, in vLLM's wire format: what is stored, removed and cleared.

A message has three frames: the topic, the batch's number (8 bytes, big-endian) and a msgpack array ``[seconds, events,
rank]``; every event is a map with its name under ``type``. Consumers that missed a batch see a gap in the numbers and ask
for it at the replay socket.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

_DEVICE_TIER = "GPU"
"""vLLM's name for the memory that the model computes from, whatever it is; "CPU" would say that blocks must be fetched."""


class BlockStored(msgspec.Struct, frozen=True, tag_field="type"):
    """Consecutive blocks of one chain can be found from now on.

    Attributes:
        block_hashes: Their names, unsigned 64 bits each.
        parent_block_hash: Of the block before them; None for the first of a chain.
        token_ids: Of all of them.
        block_size: Tokens per block.
        lora_id: Always None: vLLM's older field, for numbers that only one process knows.
        medium: Where they are.
        lora_name: Of the adapter that computed them, as clients send it; None for the model alone.
    """

    block_hashes: tuple[int, ...]
    parent_block_hash: int | None
    token_ids: tuple[int, ...]
    block_size: int
    lora_id: int | None = None
    medium: str = _DEVICE_TIER
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, frozen=True, tag_field="type"):
    """Blocks can't be found any more."""

    block_hashes: tuple[int, ...]
    medium: str = _DEVICE_TIER


class AllBlocksCleared(msgspec.Struct, frozen=True, tag_field="type"):
    """Nothing that was announced before can be found."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KvEventBatch(msgspec.Struct, frozen=True, array_like=True):
    """What one message carries.

    Attributes:
        ts: Unix time in seconds.
        events: In the order in which they happened.
        data_parallel_rank: Always 0: every replica has a socket of its own.
    """

    ts: float
    events: tuple[KvEvent, ...]
    data_parallel_rank: int | None = 0


def wire_hash(content: bytes) -> int:
    """A block's name as it is sent: the last 8 of its 16 bytes, as vLLM shortens its own."""
    return int.from_bytes(content[-8:], "big")


class KvEventLog:
    """Collects the events of a step for one batch. Owned by the device thread.

    Args:
        block_size: Tokens per block.
        publish: Takes an encoded batch.
        now_s: Unix time.
    """

    def __init__(
        self, block_size: int, publish: Callable[[bytes], None], now_s: Callable[[], float] = time.time
    ) -> None:
        self._block_size = block_size
        self._publish = publish
        self._now_s = now_s
        self._encode = msgspec.msgpack.Encoder().encode
        self._removed: list[int] = []
        # A router may remember what an earlier process under this address held.
        self._events: list[KvEvent] = [AllBlocksCleared()]
        self.flush()

    def stored(
        self, hashes: Sequence[bytes], parent: bytes, token_ids: Sequence[int], adapter: str | None = None
    ) -> None:
        """See `BlockListener`."""
        self._close_removed()
        self._events.append(
            BlockStored(
                block_hashes=tuple(map(wire_hash, hashes)),
                parent_block_hash=wire_hash(parent) if parent else None,
                token_ids=tuple(token_ids),
                block_size=self._block_size,
                lora_name=adapter,
            )
        )

    def removed(self, content: bytes) -> None:
        """See `BlockListener`."""
        self._removed.append(wire_hash(content))

    def cleared(self) -> None:
        """The cache is gone: nothing else will be sent."""
        self._close_removed()
        self._events.append(AllBlocksCleared())
        self.flush()

    def flush(self) -> None:
        """Publishes what has happened since the last call, if anything."""
        self._close_removed()
        if self._events:
            events, self._events = tuple(self._events), []
            self._publish(self._encode(KvEventBatch(ts=self._now_s(), events=events)))

    def _close_removed(self) -> None:
        if self._removed:
            self._events.append(BlockRemoved(block_hashes=tuple(self._removed)))
            self._removed = []
