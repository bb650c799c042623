from __future__ import annotations

import pytest

from sixfold.core.parallel.attention import UnsupportedAttention, divide_heads
from sixfold.core.parallel.degrees import Degrees
from tests.core.parallel.attention_cases import CASES, all_differences
from tests.core.parallel.processes import run_ranks

MODES = {
    "ulysses of 2": Degrees(context=2, ulysses=2),
    "ring of 2": Degrees(context=2),
    "ulysses of 4": Degrees(context=4, ulysses=4),
    "ring of 4": Degrees(context=4),
    "2 x 2": Degrees(context=4, ulysses=2),
}


@pytest.fixture(scope="module")
def differences() -> dict[str, dict[str, float]]:
    """Of each mode and case the largest over the ranks."""
    found = run_ranks(all_differences, *MODES.values())
    return {
        mode: {name: max(rank[name] for rank in ranks) for name in ranks[0]}
        for mode, ranks in zip(MODES, found, strict=True)
    }


@pytest.mark.parametrize("mode", MODES)
def test_attention_over_ranks_equals_attention_in_one_process(
    differences: dict[str, dict[str, float]], mode: str
) -> None:
    worst = differences[mode]
    assert len(worst) >= len(CASES) - 1
    assert {name: value for name, value in worst.items() if not value <= 1e-5} == {}


def test_ranks_beyond_the_number_of_kv_heads_share_them() -> None:
    shares = divide_heads(8, 2, 4)
    assert [share.query for share in shares] == [range(0, 2), range(2, 4), range(4, 6), range(6, 8)]
    assert [share.kv for share in shares] == [range(0, 1), range(0, 1), range(1, 2), range(1, 2)]


def test_more_ranks_than_heads_are_refused() -> None:
    with pytest.raises(UnsupportedAttention, match="2 heads can't be divided among 3 ranks"):
        divide_heads(2, 2, 3)
