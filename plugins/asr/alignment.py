"""Finds when tokens were said from where the decoder looked: dynamic time warping over cross-attention.

Source: OpenAI's whisper, timing.py; Giorgino 2009 for the warping.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sixfold.plugins.asr.untyped import scipy_ndimage

_S_PER_POSITION = 0.02
_FILTER_WIDTH = 7


def align_tokens(weights: NDArray[np.float32]) -> tuple[float, ...]:
    """The time at which each token begins.

    Args:
        weights: [heads, tokens, positions], where each token looked; positions are 20 ms apart.

    Returns:
        [tokens], in seconds of the window.
    """
    spread = weights.std(axis=1, keepdims=True)
    normal = (weights - weights.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-9)
    filtered: NDArray[np.float32] = scipy_ndimage.median_filter(normal, size=(1, 1, _FILTER_WIDTH), mode="reflect")
    cost = -filtered.mean(axis=0).astype(np.float64)
    return tuple(position * _S_PER_POSITION for position in first_positions(cost))


def first_positions(cost: NDArray[np.float64]) -> list[int]:
    """The first column that the cheapest monotone path spends in each row.

    Args:
        cost: [rows, columns].
    """
    num_rows, num_columns = cost.shape
    total = np.full((num_rows + 1, num_columns + 1), np.inf)
    total[0, 0] = 0.0
    came = np.zeros((num_rows + 1, num_columns + 1), dtype=np.int8)  # 0 diagonal, 1 from above, 2 from the left
    came[0, :] = 2
    came[:, 0] = 1
    rows = cost.tolist()
    for i in range(1, num_rows + 1):
        above, here, steps, its = total[i - 1].tolist(), [np.inf], [1], rows[i - 1]
        for j in range(1, num_columns + 1):
            diagonal, up, left = above[j - 1], above[j], here[j - 1]
            if diagonal < up and diagonal < left:
                step, least = 0, diagonal
            elif up < diagonal and up < left:
                step, least = 1, up
            else:
                step, least = 2, left
            here.append(its[j - 1] + least)
            steps.append(step)
        total[i] = here
        came[i] = steps
    firsts = [0] * num_rows
    i, j = num_rows, num_columns
    while i > 0 and j > 0:
        firsts[i - 1] = j - 1
        step = int(came[i, j])
        i, j = i - int(step != 2), j - int(step != 1)
    return firsts
