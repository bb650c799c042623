"""SpeechT5's caches: they grow as far as they must, are given back, and never move under a recorded step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sixfold.core.batching.model import Granted
from sixfold.core.errors import InvalidRequest
from sixfold.core.memory.need import MemoryQuestion
from sixfold.plugins.tts import speech_caches
from sixfold.plugins.tts.memory_need import vits_need
from sixfold.plugins.tts.options import TransformersSpeechOptions
from sixfold.plugins.tts.speech_caches import SpeechCaches
from sixfold.plugins.tts.speecht5_decoder import SpeechT5Decoder
from tests.plugins.tts.speecht5_folder import NUM_SPEAKER_VALUES, save_speecht5
from tests.plugins.tts.test_speecht5_model import (
    TEXTS,
    TOLERANCE,
    Recorder,
    computed_and,
    load_folder,
    sequences_of,
    spoken,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_speecht5(tmp_path_factory.mktemp("speecht5"))


@torch.inference_mode()
def test_a_text_that_recorded_steps_have_no_room_for_is_refused_and_nothing_moves(folder: Path) -> None:
    _, recorded = computed_and(folder, Recorder())
    decoder: Any = vars(recorded)["_decoder"]
    voice = torch.zeros(1, NUM_SPEAKER_VALUES)
    before: Tensor = decoder._caches._texts[0]
    with pytest.raises(InvalidRequest, match="49 tokens; this model speaks at most 40") as refused:
        decoder.begin(torch.ones(1, 49, dtype=torch.long), voice, 0)
    assert refused.value.param == "input"
    decoder.begin(torch.ones(1, 40, dtype=torch.long), voice, 0)
    assert decoder._caches._texts[0] is before


def test_a_sentence_that_is_left_alone_in_a_high_slot_pays_for_no_other_and_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_folder(folder)
    (expected,) = spoken(model, sequences_of(model, TEXTS[0], seed=8))
    sequences = [sequences_of(model, TEXTS[0], seed=index)[0] for index in range(9)]
    for _ in range(3):
        model.step([Granted(sequence, 1) for sequence in sequences])
    for sequence in sequences[:8]:
        model.release(sequence)
    num_attended: set[int] = set()
    attention: Any = torch.nn.functional.scaled_dot_product_attention

    def noted(query: Tensor, *others: Tensor, **settings: Any) -> Tensor:
        num_attended.add(len(query))
        found: Tensor = attention(query, *others, **settings)
        return found

    for _ in range(5):
        with monkeypatch.context() as watched:
            watched.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
            model.step([Granted(sequences[8], 1)])
    (sound,) = spoken(model, sequences[8:])
    assert num_attended == {1}
    np.testing.assert_allclose(sound, expected, atol=TOLERANCE)


def test_caches_that_grew_are_given_back_when_all_is_said(folder: Path) -> None:
    model = load_folder(folder)
    decoder: Any = vars(model)["_decoder"]
    empty = decoder._caches.num_bytes
    spoken(model, [sequences_of(model, TEXTS[i % 4], seed=i)[0] for i in range(9)])
    frames: Tensor = decoder._slots.frames
    assert (decoder._caches.num_bytes, frames.nbytes) == (empty, 0)
    (sequence,) = sequences_of(model, TEXTS[0], seed=1)
    model.step([Granted(sequence, 1)])
    assert decoder._caches.num_slots == 4


def test_caches_that_recorded_steps_read_are_never_given_back(folder: Path) -> None:
    _, recorded = computed_and(folder, Recorder())
    decoder: Any = vars(recorded)["_decoder"]
    before: Any = decoder._caches
    spoken(recorded, sequences_of(recorded, TEXTS[3], seed=1))
    assert decoder._caches is before
    assert before.num_slots == 8


def test_caches_grow_to_what_the_longest_text_needs_and_no_further(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpeechT5Decoder, "THRESHOLD", 1000.0)  # no sentence ends before its last place
    model = load_folder(folder)
    (sequence,) = sequences_of(model, "abcdefgh " * 4)
    assert len(sequence.ids) > 30
    while not model.step([Granted(sequence, 1)])[0].done:
        pass
    assert 300 < vars(model)["_decoder"]._caches.num_frames <= 400


@pytest.mark.parametrize("num_left", range(8))
def test_a_step_for_which_memory_ends_while_caches_grow_may_be_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_left: int
) -> None:
    model = load_folder(folder)
    longest = TEXTS[0] + " again and again"
    (expected,) = spoken(model, sequences_of(model, longest, seed=1))
    (short,), (long,) = (sequences_of(model, text, seed=1) for text in ("ab", longest))
    model.step([Granted(short, 1)])
    left = iter(range(num_left))

    def join(tensors: Any, dim: int = 0) -> Tensor:
        if next(left, None) is None:
            raise torch.OutOfMemoryError("no memory is left")
        return torch.cat(tensors, dim)

    with monkeypatch.context() as short_of_memory:
        short_of_memory.setattr(speech_caches, "torch", _TorchWith(join))
        with pytest.raises(torch.OutOfMemoryError):
            while True:
                model.step([Granted(long, 1)])
    while not (outcome := model.step([Granted(short, 1)])[0]).done:
        assert outcome.error is None
    (sound,) = spoken(model, [long])
    np.testing.assert_allclose(sound, expected, atol=TOLERANCE)


class _TorchWith:
    """torch with another way to join tensors."""

    def __init__(self, cat: Callable[..., Tensor]) -> None:
        self.cat = cat

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_caches_of_the_longest_sentences_are_counted(folder: Path, device: str) -> None:
    question = MemoryQuestion(
        path=folder,
        options=TransformersSpeechOptions(),
        device=device,
        num_threads=1,
        total_bytes=1 << 40,
        free_bytes=1 << 40,
        has_bfloat16=True,
    )
    caches = SpeechCaches(6, 12, 64, torch.zeros(1, device="meta"))  # the published model's
    caches.fill_up(32, 1870, 187)
    assert vits_need(question).working_bytes > caches.num_bytes > 2 << 30


def test_caches_that_were_filled_up_refuse_to_move() -> None:
    caches = SpeechCaches(2, 2, 4, torch.zeros(1))
    caches.fill_up(4, 64, 16)
    caches.take(torch.zeros(2, 2, 2, 16, 4))
    with pytest.raises(AssertionError, match="recorded steps"):
        caches.take(torch.zeros(2, 2, 2, 17, 4))
    with pytest.raises(AssertionError, match="recorded steps"):
        caches.make_room(65, 128)
    for _ in range(3):
        caches.take(torch.zeros(2, 2, 2, 3, 4))
    with pytest.raises(AssertionError, match="recorded steps"):
        caches.take(torch.zeros(2, 2, 2, 3, 4))
