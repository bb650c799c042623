"""Which replica has cached which tokens, learnt from its events.

Replicas name their blocks by hashes of their own (salts, seeds and versions differ), so blocks are found here by a hash of
what stands in them: the adapter, the block size and all tokens up to their end. A replica's names only serve to remove.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from sixfold.scaling.route.kv_events import DEVICE_TIER, AllBlocksCleared, BlockRemoved, BlockStored, KvEvent

_OTHER_TIER_CREDIT = 0.75
"""A block in host memory saves its computation but must be copied; Dynamo's default."""

BlockName = int | bytes
KeyT = TypeVar("KeyT")


@dataclass(slots=True)
class _Replica:
    """What one replica said. A block may be known by several names (salted caches) and lie in several memories."""

    chains: dict[BlockName, bytes] = field(default_factory=dict[BlockName, bytes])
    tiers: dict[BlockName, set[str]] = field(default_factory=dict[BlockName, "set[str]"])
    copies: Counter[tuple[bytes, bool]] = field(default_factory=Counter["tuple[bytes, bool]"])
    block_sizes: Counter[int] = field(default_factory=Counter[int])
    size_of: dict[bytes, int] = field(default_factory=dict[bytes, int])


class KvIndex:
    """The caches of all replicas. Owned by one event loop."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self.num_orphans = 0

    def num_blocks(self, replica_id: str) -> int:
        """Names that the replica has announced and not removed."""
        replica = self._replicas.get(replica_id)
        return 0 if replica is None else len(replica.chains)

    def apply(self, replica_id: str, events: Iterable[KvEvent]) -> None:
        """Follows a replica's events, in their order."""
        replica = self._replicas.setdefault(replica_id, _Replica())
        for event in events:
            match event:
                case BlockStored():
                    self._store(replica, event)
                case BlockRemoved():
                    for name in event.block_hashes:
                        _remove(replica, name, event.medium or DEVICE_TIER)
                case AllBlocksCleared():
                    replica = self._replicas[replica_id] = _Replica()

    def forget(self, replica_id: str) -> None:
        """What the replica held is lost, or not known any more because events were missed."""
        self._replicas.pop(replica_id, None)

    def cached_tokens(
        self, token_ids: Sequence[int], replica_ids: Iterable[str], adapter: str | None = None
    ) -> Mapping[str, float]:
        """How many leading tokens each replica holds; those in slower memory count three quarters."""
        chains: dict[int, list[bytes]] = {}
        found: dict[str, float] = {}
        for replica_id in replica_ids:
            replica = self._replicas.get(replica_id)
            found[replica_id] = 0.0
            if replica is None:
                continue
            for block_size in replica.block_sizes:
                if block_size not in chains:
                    chains[block_size] = list(_chain(root_of(block_size, adapter), token_ids, block_size))
                found[replica_id] = max(found[replica_id], _credit(replica, chains[block_size], block_size))
        return found

    def _store(self, replica: _Replica, event: BlockStored) -> None:
        if event.parent_block_hash is None:
            before = root_of(event.block_size, event.lora_name)
        elif event.parent_block_hash in replica.chains:
            before = replica.chains[event.parent_block_hash]
        else:
            # Its beginning was announced before this index listened: where it stands is not known.
            self.num_orphans += len(event.block_hashes)
            return
        tier = event.medium or DEVICE_TIER
        for name, chain in zip(event.block_hashes, _chain(before, event.token_ids, event.block_size), strict=False):
            _add(replica, name, chain, tier, event.block_size)


def root_of(block_size: int, adapter: str | None) -> bytes:
    """Where the chains of one block size and one adapter begin."""
    return hashlib.blake2b(f"{block_size} {adapter or ''}".encode(), digest_size=8).digest()


def _chain(before: bytes, token_ids: Sequence[int], block_size: int) -> Iterable[bytes]:
    try:
        tokens = np.asarray(token_ids, dtype=np.uint32).tobytes()
    except (
        OverflowError
    ):  # a client's numbers that are no tokens: nobody holds them, and the replica says what is wrong
        return
    width = 4 * block_size
    for start in range(0, len(tokens) - width + 1, width):
        before = hashlib.blake2b(before + tokens[start : start + width], digest_size=8).digest()
        yield before


def _add(replica: _Replica, name: BlockName, chain: bytes, tier: str, block_size: int) -> None:
    if replica.chains.get(name, chain) != chain:  # the name was given to something else: what it meant is gone
        for old in tuple(replica.tiers[name]):
            _remove(replica, name, old)
    replica.chains[name] = chain
    tiers = replica.tiers.setdefault(name, set())
    if tier not in tiers:
        if not tiers:
            replica.block_sizes[block_size] += 1
            replica.size_of[chain] = block_size
        tiers.add(tier)
        replica.copies[chain, tier == DEVICE_TIER] += 1


def _remove(replica: _Replica, name: BlockName, tier: str) -> None:
    tiers = replica.tiers.get(name)
    if tiers is None or tier not in tiers:
        return
    tiers.remove(tier)
    chain = replica.chains[name]
    _subtract(replica.copies, (chain, tier == DEVICE_TIER))
    if not tiers:
        del replica.tiers[name], replica.chains[name]
        _subtract(replica.block_sizes, replica.size_of[chain])
        if not replica.copies[chain, True] and not replica.copies[chain, False]:
            del replica.size_of[chain]


def _subtract(counts: Counter[KeyT], key: KeyT) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _credit(replica: _Replica, chains: Sequence[bytes], block_size: int) -> float:
    credit = 0.0
    for chain in chains:
        if replica.copies[chain, True]:
            credit += block_size
        elif replica.copies[chain, False]:
            credit += _OTHER_TIER_CREDIT * block_size
        else:
            break
    return credit
