"""What holds for models whose operator said nothing: no key finds what another has asked."""

from __future__ import annotations

import pytest

from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.prefix_sharing import PrefixSharing
from sixfold.plugins.llm.vllm_options import VllmOptions


@pytest.mark.parametrize("kind", [TransformersOptions, VllmOptions])
def test_a_prefix_is_for_its_own_key_unless_the_operator_shares_it(
    kind: type[TransformersOptions | VllmOptions],
) -> None:
    rule = PrefixSharing(mode=kind().prefix_cache, block_size=4)
    tokens = list(range(12))
    ward = rule.hashes(tokens, rule.salt("ward", None))
    assert ward == rule.hashes(tokens, rule.salt("ward", None))
    assert set(ward).isdisjoint(rule.hashes(tokens, rule.salt("lab", None)))
