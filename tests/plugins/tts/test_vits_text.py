"""VITS's reading of texts: the library's spline, and recorded lengths that say what is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import VitsModel
from transformers.models.vits import modeling_vits

from sixfold.core.memory.need import MemoryQuestion
from sixfold.plugins.tts import vits_text
from sixfold.plugins.tts.memory_need import vits_need
from sixfold.plugins.tts.options import TransformersSpeechOptions
from sixfold.plugins.tts.vits_text import TextStats, VitsText, unspline
from tests.dry_capture import dry_capture
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

    def __init__(self, refuses_from: int = 1000) -> None:
        self.num_recorded = 0
        self.calls: list[Callable[[], None]] = []
        self._refuses_from = refuses_from

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        if self.num_recorded == self._refuses_from:
            raise RuntimeError("no graph today")
        self.num_recorded += 1
        self.calls.append(call)
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


@pytest.fixture
def network(tmp_path: Path) -> Any:
    return Stock.from_pretrained(save(tmp_path)).eval()


def read(text: VitsText, *lengths: int) -> None:
    for length in lengths:
        text(torch.ones(1, length, dtype=torch.long), torch.zeros(1, 2, length), None)


@torch.inference_mode()
def test_more_lengths_than_are_recorded_are_seldom_recorded_anew(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vits_text, "MAX_RECORDED", 2)
    recorder = Recorder()
    text = VitsText(network, recorder.capture)
    for _ in range(30):
        read(text, 5, 6, 7, 8)
    assert 2 < recorder.num_recorded <= 2 + 2 * 30 // 8


@torch.inference_mode()
def test_a_new_length_that_comes_often_takes_the_place_of_one_that_no_longer_comes(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vits_text, "MAX_RECORDED", 2)
    recorder = Recorder()
    text = VitsText(network, recorder.capture)
    read(text, 5, 5, 6, 6, *[7] * 40)
    assert recorder.num_recorded == 3
    read(text, 6, 7, 5, 5)
    assert recorder.num_recorded == 3, "5 begins anew"


@torch.inference_mode()
def test_what_was_recorded_is_given_back_when_recording_fails(network: Any, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(refuses_from=2)
    text = VitsText(network, recorder.capture)
    read(text, 5, 5, 6, 6)
    kept = weakref.ref(recorder.calls[0])
    recorder.calls.clear()
    assert kept() is not None
    read(text, 7, 7, 5)
    assert kept() is None
    assert "no graph today" in caplog.text


def test_the_graphs_of_a_gpu_are_counted(tmp_path: Path) -> None:
    folder = save(tmp_path)
    cpu, gpu = (
        vits_need(
            MemoryQuestion(
                path=folder,
                options=TransformersSpeechOptions(),
                device=device,
                num_threads=1,
                total_bytes=1 << 40,
                free_bytes=1 << 40,
                has_bfloat16=True,
            )
        )
        for device in ("cpu", "cuda:0")
    )
    context_bytes = 600 << 20
    assert gpu.working_bytes - cpu.working_bytes - context_bytes >= vits_text.MAX_RECORDED * (2 << 20)


@pytest.mark.parametrize(("stochastic", "num_speakers"), [(True, 1), (True, 3), (False, 1), (False, 3)])
@torch.inference_mode()
def test_a_graph_can_record_the_reading_in_all_versions_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stochastic: bool, num_speakers: int
) -> None:
    monkeypatch.setattr(library, "create_bidirectional_mask", _mask_of_5_17)
    network = Stock.from_pretrained(save(tmp_path, stochastic=stochastic, num_speakers=num_speakers)).eval()
    text = VitsText(network.to("meta"), dry_capture)
    ids, noise = torch.zeros(1, 9, dtype=torch.long, device="meta"), torch.zeros(1, 2, 9, device="meta")
    speaker = torch.zeros(1, 8, 1, device="meta") if num_speakers > 1 else None
    for _ in range(3):
        assert text(ids, noise, speaker).log_durations.shape == (1, 1, 9)


def _mask_of_5_17(*, inputs_embeds: Tensor, **_settings: Any) -> Tensor:
    """While a graph is recorded that version makes a mask, of a zero that it copies from the host."""
    length = inputs_embeds.shape[1]
    return torch.tensor(0.0, device=inputs_embeds.device).expand(1, 1, length, length)


def _tensors(stats: TextStats) -> tuple[Tensor, ...]:
    return stats.means, stats.log_variances, stats.log_durations
