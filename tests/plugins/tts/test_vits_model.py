"""VITS of transformers with random weights, against the stock model run alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import VitsConfig, VitsModel, VitsTokenizer

from sixfold.core.batching.model import Granted
from sixfold.core.errors import InvalidRequest, SourceError
from sixfold.core.family import LoadContext, ModelFiles
from sixfold.core.messages import Failed, Request
from sixfold.plugins.tts.model import SpeechSequence
from sixfold.plugins.tts.options import TransformersSpeechOptions
from sixfold.plugins.tts.plugin import detect_transformers
from sixfold.plugins.tts.schema import SpeechInput
from sixfold.plugins.tts.vits import VitsModel as OurModel
from sixfold.plugins.tts.vits_loader import load
from tests.plugins.tts.conftest import Driver

Stock: Any = VitsModel  # these and torch.random have no types
Tokenizer: Any = VitsTokenizer
Random: Any = torch.random

TOLERANCE = 2e-4  # of full scale; one step of 16-bit sound is 3e-5
TEXTS = (
    "the first sentence is here",
    "a second one of another length follows right behind it",
    "short one here please",
    "the fourth sentence is there",
    "one more",
)


def save(folder: Path, *, stochastic: bool = True, num_speakers: int = 1, **tokenizer: Any) -> Path:
    letters = "-abcdefghijklmnopqrstuvwxyz' "
    (folder / "letters.json").write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    settings = {"language": "eng", "phonemize": False, "pad_token": "-", "unk_token": " ", **tokenizer}
    Tokenizer(str(folder / "letters.json"), **settings).save_pretrained(folder)
    torch.default_generator.manual_seed(3)
    config: Any = VitsConfig(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        flow_size=16,
        spectrogram_bins=9,
        upsample_initial_channel=32,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        duration_predictor_filter_channels=16,
        depth_separable_num_layers=2,
        prior_encoder_num_wavenet_layers=2,
        posterior_encoder_num_wavenet_layers=2,
        use_stochastic_duration_prediction=stochastic,
        num_speakers=num_speakers,
        speaker_embedding_size=8 if num_speakers > 1 else 0,
    )
    network: Any = Stock(config)
    network.save_pretrained(folder)
    return folder


def load_folder(folder: Path, **options: Any) -> OurModel:
    return load(
        LoadContext(
            model_name="v", path=folder, device="cpu", num_threads=1, options=TransformersSpeechOptions(**options)
        )
    )


def sequences_of(model: OurModel, text: str, **wanted: Any) -> list[SpeechSequence]:
    request = Request(request_id="r", input=SpeechInput(text=text, **wanted), arrived_s=0.0)
    return [sequence for piece in model.split(request) for sequence in model.prepare(request, piece)]


def samples(outcome: Any) -> NDArray[np.float64]:
    assert outcome.error is None
    return np.frombuffer(outcome.output.pcm, "<i2") / 32767


def stock_sound(folder: Path, sequence: SpeechSequence, **settings: Any) -> NDArray[np.float64]:
    network: Any = Stock.from_pretrained(folder)
    network.eval()
    Random.manual_seed(sequence.seed)
    with torch.no_grad():
        waveform = network(torch.as_tensor(sequence.ids)[None], **settings).waveform
    clipped: NDArray[np.float64] = np.clip(waveform[0].double().numpy(), -1, 1)
    return clipped


@pytest.mark.parametrize(("stochastic", "num_speakers"), [(True, 1), (False, 1), (True, 3)])
def test_a_batch_equals_the_stock_model_run_alone(tmp_path: Path, stochastic: bool, num_speakers: int) -> None:
    folder = save(tmp_path, stochastic=stochastic, num_speakers=num_speakers)
    model = load_folder(folder, max_batch_sentences=3)
    voice = "2" if num_speakers > 1 else ""
    sequences = [sequences_of(model, text, voice=voice, seed=index)[0] for index, text in enumerate(TEXTS)]
    outcomes = model.step([Granted(sequence, 1) for sequence in sequences])
    settings = {"speaker_id": 2} if num_speakers > 1 else {}
    for sequence, outcome in zip(sequences, outcomes, strict=True):
        expected = stock_sound(folder, sequence, **settings)
        assert np.abs(expected).max() > 0.001, "silence would prove nothing"
        np.testing.assert_allclose(samples(outcome), expected, atol=TOLERANCE)


def test_a_sentence_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    model = load_folder(save(tmp_path))
    (alone,) = model.step([Granted(sequences_of(model, TEXTS[1], seed=5)[0], 1)])
    mixed = [sequences_of(model, text, seed=5)[0] for text in TEXTS]
    together = model.step([Granted(sequence, 1) for sequence in mixed])[1]
    np.testing.assert_allclose(samples(together), samples(alone), atol=TOLERANCE)


def test_the_seed_decides_the_sound(tmp_path: Path) -> None:
    model = load_folder(save(tmp_path))
    sounds = [samples(model.step([Granted(sequences_of(model, TEXTS[0], seed=seed)[0], 1)])[0]) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(sounds[0], sounds[1])
    assert sounds[0].shape != sounds[2].shape or not np.array_equal(sounds[0], sounds[2])


def test_speed_shortens_the_sound(tmp_path: Path) -> None:
    model = load_folder(save(tmp_path, stochastic=False))
    lengths = [
        len(samples(model.step([Granted(sequences_of(model, TEXTS[1], speed=s)[0], 1)])[0])) for s in (0.5, 1, 2)
    ]
    assert lengths[0] > lengths[1] > lengths[2]


def test_english_figures_are_read_and_foreign_ones_refused(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "de").mkdir()
    english = load_folder(save(tmp_path / "en"))
    assert len(sequences_of(english, "5")[0].ids) == len(sequences_of(english, "five")[0].ids)
    german = load_folder(save(tmp_path / "de", language="deu"))
    with pytest.raises(InvalidRequest, match="figures"):
        sequences_of(german, "es ist 5")


def test_a_model_whose_text_needs_a_missing_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="uroman"):
        load_folder(save(tmp_path, is_uroman=True))


def test_the_folder_is_recognised(tmp_path: Path) -> None:
    assert detect_transformers(ModelFiles(save(tmp_path))) == 100
    assert detect_transformers(ModelFiles(tmp_path / "nothing")) == 0


@pytest.fixture
def driver(tmp_path: Path, drive: Callable[..., Driver]) -> Iterator[Driver]:
    yield drive(load_folder(save(tmp_path)))


def test_eight_requests_at_once_equal_each_alone_beside_a_cancelled_one(driver: Driver) -> None:
    texts = [f"{TEXTS[index % 5].capitalize()}. And then {TEXTS[(index + 1) % 5]}." for index in range(8)]
    alone = [driver.speak(text, seed=index).pcm for index, text in enumerate(texts)]
    for index, text in enumerate(texts):
        driver.start(f"r{index}", text, seed=index)
    driver.start("gone", "This one leaves at once. It says nothing more.")
    driver.manager.cancel("gone")
    for index, expected in enumerate(alone):
        together = driver.result(f"r{index}").pcm
        assert len(together) == len(expected)
        np.testing.assert_allclose(np.frombuffer(together, "<i2"), np.frombuffer(expected, "<i2"), atol=6)
    assert driver.result("gone").end is not None


def test_a_text_without_letters_is_refused(driver: Driver) -> None:
    end = driver.speak("!!! ...").end
    assert isinstance(end, Failed)
    assert end.error.param == "input"
