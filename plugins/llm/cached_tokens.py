"""The tokens of one sequence and where their keys and values are: all that the cache and a step's layout need to know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sixfold.plugins.llm.lora_adapter import Adapter
from sixfold.plugins.llm.prompt_images import PromptImage
from sixfold.plugins.llm.rope_positions import RopePositions
from sixfold.plugins.llm.sampling import IntArray


class CachedTokens:
    """Known tokens, how many of them are computed, and the blocks that hold the computed ones.

    Args:
        token_ids: The prompt; generated tokens are appended.
        salt: Only sequences of equal salt share blocks; None shares with nobody.
        block_hashes: Of the prompt's full blocks, as far as they are known.
        images: Those of the prompt, in order.
        rope: Its positions; None if they are its places.
        adapter: Computes them; None for the model alone. Its identity is part of the salt.

    Attributes:
        drafts: Tokens that may follow the known ones, to be verified in the next step.
        num_scored: Tokens, from the first on, whose log probabilities are yet to be told.
        num_published: Blocks at the head of the table that others can find.
        num_checked: Blocks at the head of the table whose values were looked at, or will have been when the steps in flight end.
        num_in_flight: Tokens behind the computed ones that steps in flight compute.
        num_expected: Tokens that these steps will add to the known ones.
        carried: Place of the expected token among those that the last step chose.
        num_restarts: Rises when what is in flight counts for nothing any more.
        num_cached: Tokens that were found in the cache when the sequence first started; None until then.
    """

    __slots__ = (
        "adapter",
        "block_hashes",
        "block_table",
        "carried",
        "drafts",
        "images",
        "num_blocks",
        "num_cached",
        "num_checked",
        "num_computed",
        "num_expected",
        "num_in_flight",
        "num_published",
        "num_restarts",
        "num_scored",
        "rope",
        "salt",
        "suspect",
        "token_ids",
    )

    def __init__(
        self,
        token_ids: Sequence[int],
        *,
        salt: bytes | None = None,
        block_hashes: Sequence[bytes] = (),
        images: Sequence[PromptImage] = (),
        rope: RopePositions | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.token_ids = list(token_ids)
        self.adapter = adapter
        self.drafts: Sequence[int] = ()
        self.salt = salt
        self.block_hashes = list(block_hashes)
        self.images = images
        self.rope = rope
        self.num_published = 0
        self.num_scored = 0
        self.num_cached: int | None = None
        self.num_computed = 0
        self.num_checked = 0
        self.num_in_flight = 0
        self.num_expected = 0
        self.carried = -1
        self.num_restarts = 0
        self.block_table: IntArray = np.zeros(16, dtype=np.int64)
        self.num_blocks = 0
        self.suspect = False  # its blocks may hold values that are not finite

    @property
    def num_begun(self) -> int:
        """Tokens whose keys and values are in the cache, or will be when the steps in flight end."""
        return self.num_computed + self.num_in_flight

    @property
    def num_uncomputed(self) -> int:
        """Tokens behind `num_begun`, known or expected; 1 in steady generation."""
        return len(self.token_ids) + self.num_expected - self.num_computed - self.num_in_flight

    def drop_in_flight(self) -> None:
        """What steps in flight compute for it counts for nothing; the next step computes it again, in the same places."""
        self.num_in_flight = self.num_expected = 0
        self.num_checked = self.num_published
        self.num_restarts += 1

    def add_blocks(self, block_ids: list[int]) -> None:
        """Appends cache blocks to the table."""
        end = self.num_blocks + len(block_ids)
        if end > len(self.block_table):
            grown = np.zeros(max(end, 2 * len(self.block_table)), dtype=np.int64)
            grown[: self.num_blocks] = self.block_table[: self.num_blocks]
            self.block_table = grown
        self.block_table[self.num_blocks : end] = block_ids
        self.num_blocks = end

    def take_blocks(self) -> list[int]:
        """Empties the table and returns its blocks; nothing is computed any more."""
        blocks: list[int] = self.block_table[: self.num_blocks].tolist()
        self.num_blocks = 0
        self.num_computed = 0
        self.num_published = 0
        self.drafts = ()
        self.drop_in_flight()
        return blocks
