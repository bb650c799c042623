from __future__ import annotations

import pytest
import torch

from sixfold.core.errors import ConfigError
from sixfold.core.rendezvous.comparison import Comparison


def test_ranks_that_differ_by_rounding_are_served() -> None:
    comparison = Comparison("context 2")
    answer = torch.randn(2, 8)
    comparison.add((answer,), (answer * (1 + 1e-6),))
    comparison.check()


@pytest.mark.parametrize("wrong", [torch.ones(2, 8), torch.full((2, 8), float("nan")), torch.zeros(2, 7)])
def test_ranks_that_compute_something_else_are_refused_with_what_to_do(wrong: torch.Tensor) -> None:
    comparison = Comparison("context 2 (ulysses 2 x ring 1)")
    comparison.add((torch.zeros(2, 8),), (torch.zeros(2, 8),))
    comparison.add((torch.zeros(2, 8) + 0.5,), (wrong,))
    with pytest.raises(ConfigError, match=r"split as context 2 .* is not served. Remove 'parallel' or use 'cfg' alone"):
        comparison.check()


def test_ranks_that_were_never_asked_are_refused() -> None:
    with pytest.raises(ConfigError, match="no forward went over the ranks"):
        Comparison("cfg 2").check()
