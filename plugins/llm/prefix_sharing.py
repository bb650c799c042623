"""Who shares cache blocks with whom, and what the blocks of a prompt are known as; worked out before a request is stepped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from sixfold.core.messages import ANONYMOUS
from sixfold.plugins.llm.block_pool import block_hash
from sixfold.plugins.llm.prompt_images import PromptImage, block_key

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
        # Without keys all are one: the blocks have the names that routers know from the tokens alone.
        is_shared = self.mode == "shared" or tenant == ANONYMOUS
        if adapter is not None:
            return msgspec.msgpack.encode((adapter, None if is_shared else tenant, cache_salt))
        if is_shared:
            return b"" if cache_salt is None else msgspec.msgpack.encode(cache_salt)
        return msgspec.msgpack.encode((tenant, cache_salt))

    def hashes(self, token_ids: Sequence[int], salt: bytes | None, images: Sequence[PromptImage] = ()) -> list[bytes]:
        """Of the full blocks of a prompt; none if it is not shared."""
        hashes: list[bytes] = []
        if salt is not None:
            extend_hashes(hashes, token_ids, block_size=self.block_size, salt=salt, images=images)
        return hashes


def extend_hashes(
    hashes: list[bytes],
    token_ids: Sequence[int],
    *,
    block_size: int,
    salt: bytes,
    images: Sequence[PromptImage] = (),
) -> None:
    """Appends the hashes of the full blocks of ``token_ids`` that ``hashes`` has not yet.

    The salt is in the first block's hash and thus in all that follow; so is an image in that of the first block that holds
    a part of it. The tokens that stand for images are the same for all.
    """
    for index in range(len(hashes), len(token_ids) // block_size):
        begin, end = index * block_size, (index + 1) * block_size
        others = block_key(images, begin, end) if images else b""
        if hashes:
            hashes.append(block_hash(hashes[-1], token_ids[begin:end], others))
        else:
            # The length keeps apart where one ends and the other begins.
            own = len(salt).to_bytes(8, "little") + salt + others if others else salt
            hashes.append(block_hash(b"", token_ids[begin:end], own))
