"""The events by which replicas tell what they have cached, as vLLM and Sixfold send them over ZMQ.

Read as tagged maps inside of an array ``[seconds, events, rank]``. Fields that are not used here may come and go; an event of
an unknown type fails the decoding, so that a new kind of event is noticed and not taken for nothing.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
DEVICE_TIER = "GPU"
"""vLLM's name for the memory that a model computes from."""


class BlockStored(msgspec.Struct, frozen=True, tag_field="type"):
    """Consecutive blocks of one chain can be found.

    Attributes:
        block_hashes: The replica's own names of them, numbers or bytes.
        parent_block_hash: Of the block before them; None for the first of a chain.
        token_ids: Of all of them.
        block_size: Tokens per block.
        medium: In which memory; None is the device's.
        lora_name: Of the adapter that computed them.
    """

    block_hashes: tuple[int | bytes, ...]
    parent_block_hash: int | bytes | None
    token_ids: tuple[TokenId, ...]
    block_size: Annotated[int, msgspec.Meta(gt=0)]
    medium: str | None = DEVICE_TIER
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, frozen=True, tag_field="type"):
    """Blocks can't be found any more in one memory."""

    block_hashes: tuple[int | bytes, ...]
    medium: str | None = DEVICE_TIER


class AllBlocksCleared(msgspec.Struct, frozen=True, tag_field="type"):
    """Nothing that was announced before can be found."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KvEventBatch(msgspec.Struct, frozen=True, array_like=True):
    """One message.

    Attributes:
        ts: Unix time in seconds, of the replica.
        events: In the order in which they happened.
        data_parallel_rank: Of the engine inside of the replica.
    """

    ts: float
    events: tuple[KvEvent, ...]
    data_parallel_rank: int | None = None


decode_batch = msgspec.msgpack.Decoder(KvEventBatch).decode
"""Reads a message's third frame; raises `msgspec.DecodeError` (or its ValidationError) for what is none."""
