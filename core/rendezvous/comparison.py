"""Compares answers that should be equal but for rounding: of merged calls and of calls alone, of ranks and of one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sixfold.core.errors import ConfigError
from sixfold.core.rendezvous.streams import tensors_in

# How far a merged forward, or one over several ranks, may be from the calls alone, as a share of the largest value. Other
# kernels for other shapes round differently; a module that mixes its rows, or reads one row's time for all, is off by far more.
_MAX_DIFFERENCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_MAX_DIFFERENCE_HALF = 5e-2


class Comparison:
    """Collects how far the ranks' answers are from those of one process. Owner: the thread of the forwards.

    Args:
        degrees: Of the ranks, for the message.
    """

    def __init__(self, degrees: str) -> None:
        self._degrees = degrees
        self._worst = 0.0
        self._num_forwards = 0

    def add(self, alone: Any, over_ranks: Any) -> None:
        """One forward."""
        self._num_forwards += 1
        self._worst = max(self._worst, max_difference([alone], [over_ranks]))

    def check(self) -> None:
        """Refuses ranks that compute something else.

        Raises:
            ConfigError: They do, or nothing was compared.
        """
        if self._num_forwards == 0:
            raise ConfigError("parallel: no forward went over the ranks when the model was tried. Remove 'parallel'.")
        if self._worst > 1.0:
            raise ConfigError(
                f"parallel: split as {self._degrees}, the model gives other results than in one process "
                f"({self._worst:.1e} times what rounding may do), so it is not served. Remove 'parallel' or use 'cfg' alone, "
                "and please report this model."
            )


def max_difference(expected: Sequence[Any], actual: Sequence[Any]) -> float:
    """The largest difference of two lists of answers, as a multiple of what rounding may do."""
    worst = 0.0
    for one, other in zip(tensors_in(expected), tensors_in(actual), strict=True):
        worst = max(worst, _difference(one, other))
    return worst


def allowed_difference(answer: Any) -> float:
    """What rounding is taken for granted, as a share of the largest value."""
    return max(_MAX_DIFFERENCE.get(each.dtype, _MAX_DIFFERENCE_HALF) for each in tensors_in([answer]))


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    allowed = _MAX_DIFFERENCE.get(one.dtype, _MAX_DIFFERENCE_HALF)
    largest = float(one.abs().max()) or 1.0
    found = float((one.float() - other.float()).abs().max()) / largest / allowed
    return found if found == found else float("inf")
