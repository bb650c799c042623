"""VITS's reading of texts: the library's spline, and recorded lengths that say what is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import VitsModel
from transformers.models.vits import modeling_vits

from sixfold.plugins.tts.vits_text import TextStats, VitsText, unspline
from tests.plugins.tts.test_vits_model import save

Stock: Any = VitsModel  # both without types
library: Any = modeling_vits


def test_the_spline_goes_back_as_the_librarys_does() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.cat(
        [4 * torch.randn(1, 1, 200, generator=generator), torch.tensor([[[-5.0, 5.0, 0.0, 5.1, -70.0]]])], 2
    )
    widths, heights = (2 * torch.randn(1, 1, 205, 10, generator=generator) for _ in range(2))
    slopes = 2 * torch.randn(1, 1, 205, 9, generator=generator)
    expected, _ = library._unconstrained_rational_quadratic_spline(
        values, widths, heights, slopes, reverse=True, tail_bound=5.0
    )
    assert (expected != values).any()
    torch.testing.assert_close(unspline(values, widths, heights, slopes, bound=5.0), expected, atol=1e-5, rtol=1e-5)


class Recorder:
    """In place of CUDA graphs: what is computed again lands where the first answer lies."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        self.num_recorded += 1
        call()
        return call


@pytest.mark.parametrize("num_speakers", [1, 3])
@torch.inference_mode()
def test_a_length_that_comes_again_is_recorded_once_and_reads_the_same(tmp_path: Path, num_speakers: int) -> None:
    network = Stock.from_pretrained(save(tmp_path, num_speakers=num_speakers)).eval()
    recorder = Recorder()
    computed, recorded = VitsText(network, None), VitsText(network, recorder.capture)
    generator = torch.Generator().manual_seed(2)
    for length in (9, 12, 9, 9, 12, 9):
        ids = torch.randint(1, 20, (1, length), generator=generator)
        noise = torch.randn(1, 2, length, generator=generator)
        speaker = torch.randn(1, 8, 1, generator=generator) if num_speakers > 1 else None
        found, expected = recorded(ids, noise, speaker), computed(ids, noise, speaker)
        for one, other in zip(_tensors(found), _tensors(expected), strict=True):
            torch.testing.assert_close(one, other)
    assert recorder.num_recorded == 2


def _tensors(stats: TextStats) -> tuple[Tensor, ...]:
    return stats.means, stats.log_variances, stats.log_durations
