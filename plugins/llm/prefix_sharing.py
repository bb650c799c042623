"""Who shares cache blocks with whom, and what the blocks of a prompt are known as; worked out before a request is stepped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from sixfold.plugins.llm.block_pool import block_hash

SharingMode = Literal["shared", "per_key", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixSharing:
    """The rule of one model.

    Attributes:
        mode: ``shared``: everybody with everybody; ``per_key``: the requests of one API key; ``off``: nobody.
        block_size: Tokens per cache block.
    """

    mode: SharingMode
    block_size: int

    def salt(self, tenant: str, cache_salt: str | None, adapter: bytes | None = None) -> bytes | None:
        """What a chain of blocks depends on beside its tokens: b"" if on nothing, None if it is not shared at all.

        Args:
            tenant: Identity of the API key.
            cache_salt: The request's own.
            adapter: Identity of the adapter that computes the blocks.
        """
        if self.mode == "off":
            return None
        if adapter is not None:
            return msgspec.msgpack.encode((adapter, tenant if self.mode == "per_key" else None, cache_salt))
        if self.mode == "shared":
            return b"" if cache_salt is None else msgspec.msgpack.encode(cache_salt)
        return msgspec.msgpack.encode((tenant, cache_salt))

    def hashes(self, token_ids: Sequence[int], salt: bytes | None) -> list[bytes]:
        """Of the full blocks of a prompt; none if it is not shared."""
        hashes: list[bytes] = []
        if salt is not None:
            extend_hashes(hashes, token_ids, block_size=self.block_size, salt=salt)
        return hashes


def extend_hashes(hashes: list[bytes], token_ids: Sequence[int], *, block_size: int, salt: bytes) -> None:
    """Appends the hashes of the full blocks of ``token_ids`` that ``hashes`` has not yet.

    The salt is in the first block's hash and thus in all that follow.
    """
    for index in range(len(hashes), len(token_ids) // block_size):
        tokens = token_ids[index * block_size : (index + 1) * block_size]
        hashes.append(block_hash(hashes[-1], tokens) if hashes else block_hash(b"", tokens, salt))
