"""Pooling of a flat batch equals sentence-transformers' pooling of a padded one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling

from sixfold.plugins.embedding.pooling import POOLING, FlatHidden, pool

LENGTHS = torch.tensor([3, 1, 7, 4])


def padded_and_flat() -> tuple[dict[str, Any], FlatHidden]:
    hidden = torch.randn(4, 7, 5)
    mask = (torch.arange(7) < LENGTHS[:, None]).long()
    flat = FlatHidden(hidden=hidden[mask.bool()], starts=LENGTHS.cumsum(0) - LENGTHS, lengths=LENGTHS)
    return {"token_embeddings": hidden, "attention_mask": mask}, flat


@pytest.mark.parametrize("mode", POOLING)
def test_each_mode_equals_the_librarys(mode: Any) -> None:
    padded, flat = padded_and_flat()
    expected = Pooling(5, pooling_mode=mode)(padded)["sentence_embedding"]
    torch.testing.assert_close(pool(flat, (mode,)), expected)


def test_several_modes_are_joined_in_their_order() -> None:
    _, flat = padded_and_flat()
    both = pool(flat, ("max", "cls"))
    assert torch.equal(both, torch.cat([pool(flat, ("max",)), pool(flat, ("cls",))], dim=-1))


def test_a_left_out_prompt_equals_the_librarys() -> None:
    padded, flat = padded_and_flat()
    long = LENGTHS > 2
    expected = Pooling(5, include_prompt=False)({**padded, "prompt_length": 2})["sentence_embedding"]
    actual = pool(flat.without_prompts(torch.full((4,), 2)), ("mean",))
    torch.testing.assert_close(actual[long], expected[long])


def test_a_sequence_that_is_all_prompt_keeps_its_last_token() -> None:
    _, flat = padded_and_flat()
    actual = pool(flat.without_prompts(torch.full((4,), 99)), ("mean",))
    torch.testing.assert_close(actual, pool(flat, ("lasttoken",)))


def test_half_precision_is_pooled_in_float32() -> None:
    _, flat = padded_and_flat()
    half = FlatHidden(hidden=flat.hidden.bfloat16(), starts=flat.starts, lengths=flat.lengths)
    assert all(pool(half, (mode,)).dtype is torch.float32 for mode in POOLING)
