"""SpeechT5: sentences in one batch, joining and leaving at any frame, sound as transformers speaks each alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import SpeechT5ForTextToSpeech, SpeechT5HifiGan

from sixfold.core.batching.model import Granted
from sixfold.core.batching.step_runner import run_step
from sixfold.core.errors import ConfigError, InvalidRequest
from sixfold.core.family import LoadContext, ModelFiles
from sixfold.core.messages import Failed, Request
from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.core.source_ref import SourceRef
from sixfold.plugins.tts.options import TransformersSpeechOptions
from sixfold.plugins.tts.plugin import detect_transformers
from sixfold.plugins.tts.schema import SpeechInput
from sixfold.plugins.tts.speecht5 import SpeechT5Model
from sixfold.plugins.tts.speecht5_decoder import SpeechT5Decoder
from sixfold.plugins.tts.transformers_loader import load
from tests.dry_capture import dry_capture
from tests.plugins.tts.conftest import Driver
from tests.plugins.tts.speecht5_folder import NUM_SPEAKER_VALUES, save_speecht5
from tests.plugins.tts.test_vits_model import save as save_vits

Network: Any = SpeechT5ForTextToSpeech  # all without types
Vocoder: Any = SpeechT5HifiGan
Random: Any = torch.random

TOLERANCE = 2e-4  # of full scale; one step of 16-bit sound is 3e-5
TEXTS = ("the quick brown fox", "a lazy dog jumps", "yes! so well, then", "it is over")
VOICES = ("anna", "bert", "cleo", "anna")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_speecht5(tmp_path_factory.mktemp("speecht5"))


def load_folder(folder: Path, **options: Any) -> SpeechT5Model:
    given = TransformersSpeechOptions(**options)
    model = load(LoadContext(model_name="v", path=folder, device="cpu", num_threads=1, options=given))
    assert isinstance(model, SpeechT5Model)
    return model


def sequences_of(model: SpeechT5Model, text: str, **wanted: Any) -> list[Any]:
    request = Request(request_id="r", input=SpeechInput(text=text, **wanted), arrived_s=0.0)
    return [sequence for piece in model.split(request) for sequence in model.prepare(request, piece)]


def spoken(model: SpeechT5Model, sequences: list[Any], *, arrivals: tuple[int, ...] = ()) -> list[NDArray[np.float64]]:
    """The sound of each; sequence i joins at the step ``arrivals[i]``."""
    sounds: dict[int, NDArray[np.float64]] = {}
    num_steps = 0
    while len(sounds) < len(sequences):
        running = [
            index
            for index in range(len(sequences))
            if index not in sounds and (not arrivals or arrivals[index] <= num_steps)
        ]
        outcomes = model.step([Granted(sequences[index], 1) for index in running])
        for index, outcome in zip(running, outcomes, strict=True):
            assert outcome.error is None
            if outcome.done:
                assert outcome.output is not None
                sounds[index] = np.frombuffer(outcome.output.pcm, "<i2") / 32767
                model.release(sequences[index])
        num_steps += 1
    return [sounds[index] for index in range(len(sequences))]


def stock_sound(folder: Path, sequence: Any, voice: str) -> NDArray[np.float64]:
    """What ``generate_speech`` makes of the sentence alone with the same seed."""
    network, vocoder = Network.from_pretrained(folder), Vocoder.from_pretrained(folder / "vocoder")
    with np.load(folder / "voices.npz") as voices:
        speaker = torch.as_tensor(voices[voice])[None]
    Random.manual_seed(sequence.seed)
    with torch.no_grad():
        ids = torch.as_tensor(sequence.ids)[None]
        waveform = network.eval().generate_speech(ids, speaker, threshold=0.2, vocoder=vocoder.eval())
    clipped: NDArray[np.float64] = np.clip(waveform.double().numpy(), -1, 1)
    return clipped


def test_sentences_that_join_and_end_at_different_frames_equal_the_stock_model_run_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpeechT5Decoder, "THRESHOLD", 0.2)  # at which random weights end some sentences by themselves
    model = load_folder(folder)
    sequences = [
        sequences_of(model, text, voice=voice, seed=index)[0]
        for index, (text, voice) in enumerate(zip(TEXTS, VOICES, strict=True))
    ]
    sounds = spoken(model, sequences, arrivals=(0, 3, 3, 40))
    num_frames: list[int] = []
    for sequence, voice, sound in zip(sequences, VOICES, sounds, strict=True):
        expected = stock_sound(folder, sequence, voice)
        assert np.abs(expected).max() > 0.001, "silence would prove nothing"
        assert sound.shape == expected.shape
        np.testing.assert_allclose(sound, expected, atol=TOLERANCE)
        num_frames.append(len(sound) // 32)
    most = [10 * len(sequence.ids) for sequence in sequences]
    assert (num_frames[0], num_frames[3]) == (most[0], most[3])
    assert num_frames[1] < num_frames[2] < most[2]


def test_a_step_that_fails_and_is_repeated_says_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_folder(folder)
    (expected,) = spoken(model, sequences_of(model, TEXTS[0], seed=1))
    sequences = sequences_of(model, TEXTS[0], seed=1)
    network: Any = vars(model)["_network"]
    for _ in range(3):
        model.step([Granted(sequences[0], 1)])
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="broken"):
        broken.setattr(network.speech_decoder_postnet.feat_out, "forward", _broken)
        model.step([Granted(sequences[0], 1)])
    (sound,) = spoken(model, sequences)
    np.testing.assert_array_equal(sound, expected)


@pytest.mark.parametrize("failing", [0, 1])
def test_sentences_that_end_in_one_step_sound_the_same_when_the_vocoder_fails_and_the_step_is_repeated(
    folder: Path, failing: int
) -> None:
    def sequences() -> list[Any]:
        return [sequences_of(model, TEXTS[index], voice=VOICES[index], seed=1)[0] for index in (0, 0, 3)]

    model = load_folder(folder)
    expected = spoken(model, sequences())
    vocoder = vars(model)["_vocoder"]
    sounds = iter(range(10))

    def fails_once(spectrogram: Tensor) -> Tensor:
        if next(sounds) == failing:
            raise RuntimeError("out of memory")
        found: Tensor = vocoder(spectrogram)
        return found

    vars(model)["_vocoder"] = fails_once
    repeated = sequences()
    found: dict[int, NDArray[np.float64]] = {}
    while len(found) < 3:
        running = [index for index in range(3) if index not in found]
        for index, outcome in zip(running, run_step(model, [Granted(repeated[i], 1) for i in running]), strict=True):
            assert outcome.error is None
            if outcome.done:
                assert outcome.output is not None, "its sound was given out before, to nobody"
                found[index] = np.frombuffer(outcome.output.pcm, "<i2") / 32767
                model.release(repeated[index])
    for index in range(3):
        assert found[index].shape == expected[index].shape
        np.testing.assert_allclose(found[index], expected[index], atol=TOLERANCE)


def _broken(_hidden: Any) -> Any:
    raise RuntimeError("broken")


def test_voices_come_from_the_folder_and_from_sources_and_blend(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "dora.npy", np.linspace(-1, 1, NUM_SPEAKER_VALUES)[None])
    dora = SourceRef(source=f"file:{tmp_path / 'dora.npy'}", path=tmp_path / "dora.npy")
    model = load_folder(folder, speakers={"dora": dora}, default_voice="bert")
    assert str(model.info.details["voices"]).split(",") == ["anna", "bert", "cleo", "dora"]
    first, named, other, blend = (
        spoken(model, sequences_of(model, TEXTS[3], voice=voice, seed=1))[0]
        for voice in ("", "bert", "dora", "bert+dora")
    )
    np.testing.assert_array_equal(first, named)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, blend)
    with pytest.raises(InvalidRequest, match="no voice 'emil'"):
        sequences_of(model, TEXTS[0], voice="emil")


def test_other_speeds_are_refused_and_long_sentences_are_cut(folder: Path) -> None:
    model = load_folder(folder)
    with pytest.raises(InvalidRequest, match="speed 2") as refused:
        sequences_of(model, TEXTS[0], speed=2.0)
    assert refused.value.param == "speed"
    # 400 positions of speech hold what 40 tokens say.
    parts = sequences_of(model, "the quick brown fox jumps over the lazy dog " * 3)
    assert len(parts) > 2
    assert max(len(part.ids) for part in parts) <= 40


def test_figures_are_spelled_out_where_the_model_has_no_letters_for_them(folder: Path) -> None:
    model = load_folder(folder)
    (figures,), (words,) = sequences_of(model, "5 dogs"), sequences_of(model, "five dogs")
    np.testing.assert_array_equal(figures.ids, words.ids)


def test_a_missing_vocoder_or_voice_and_options_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    bare = save_speecht5(tmp_path)
    (bare / "voices.npz").unlink()
    with pytest.raises(ConfigError, match="needs a voice"):
        load_folder(bare)
    np.save(tmp_path / "short.npy", np.zeros(3))
    short = SourceRef(source=f"file:{tmp_path / 'short.npy'}", path=tmp_path / "short.npy")
    with pytest.raises(ConfigError, match="'short' must be 6 finite numbers"):
        load_folder(bare, speakers={"short": short})
    with pytest.raises(ConfigError, match=r"options.vocoder: SpeechT5 makes spectrograms"):
        (bare / "vocoder").rename(tmp_path / "elsewhere")
        load_folder(bare)
    (tmp_path / "vits").mkdir()
    with pytest.raises(ConfigError, match=r"options.speakers is for SpeechT5; this is vits"):
        load_folder(save_vits(tmp_path / "vits"), speakers={"short": short})


def test_the_folder_is_recognised_and_one_that_listens_is_not(folder: Path, tmp_path: Path) -> None:
    assert detect_transformers(ModelFiles(folder)) == 100
    (tmp_path / "config.json").write_text('{"model_type": "speecht5", "architectures": ["SpeechT5ForSpeechToText"]}')
    assert detect_transformers(ModelFiles(tmp_path)) == 0


def test_eight_requests_at_once_equal_each_alone_beside_a_cancelled_one(
    folder: Path, drive: Callable[..., Driver]
) -> None:
    driver = drive(load_folder(folder))
    texts = [f"{TEXTS[index % 4].capitalize()}. And then {TEXTS[(index + 1) % 4]}." for index in range(8)]
    alone = [driver.speak(text, voice=VOICES[index % 4], seed=index).pcm for index, text in enumerate(texts)]
    for index, text in enumerate(texts):
        driver.start(f"r{index}", text, voice=VOICES[index % 4], seed=index)
    driver.start("gone", "This one leaves at once. It says nothing more.")
    driver.manager.cancel("gone")
    for index, expected in enumerate(alone):
        together = driver.result(f"r{index}").pcm
        assert len(together) == len(expected) > 0
        np.testing.assert_allclose(np.frombuffer(together, "<i2"), np.frombuffer(expected, "<i2"), atol=6)
    assert driver.result("gone").end is not None
    assert isinstance(driver.speak("!!! ...").end, Failed)


def test_numbers_that_are_drawn_ahead_are_a_sentences_own(folder: Path) -> None:
    """As on a GPU, where nothing of transformers can be compared."""

    def model_on_a_gpu() -> SpeechT5Model:
        model = load_folder(folder)
        vars(model)["_decoder"]._draws_ahead = True
        return model

    model = model_on_a_gpu()
    alone = [spoken(model, sequences_of(model, text, seed=index))[0] for index, text in enumerate(TEXTS)]
    model = model_on_a_gpu()
    sequences = [sequences_of(model, text, seed=index)[0] for index, text in enumerate(TEXTS)]
    model.step([Granted(sequences[0], 1)])
    model.release(sequences[0])  # its slot goes to another
    sequences[0] = sequences_of(model, TEXTS[0], seed=0)[0]
    together = spoken(model, sequences, arrivals=(0, 3, 3, 40))
    for one, other in zip(alone, together, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=TOLERANCE)
    (again,) = spoken(model, sequences_of(model, TEXTS[0], seed=9))
    assert not np.array_equal(again, alone[0])


def recording(model: SpeechT5Model, capture: Capture) -> SpeechT5Model:
    """As on a GPU, where steps are recorded; but numbers are drawn as on a CPU, so that the sound can be compared."""
    own = vars(model)
    decoder = SpeechT5Decoder(own["_network"], max_rows=8, max_tokens=model.info.max_model_len or 0, capture=capture)
    own["_decoder"] = decoder
    return model


class Recorder:
    """In place of CUDA graphs; notes what is recorded, and refuses it from a number on."""

    def __init__(self, refuses_from: int = 1000) -> None:
        self.num_recorded = 0
        self._refuses_from = refuses_from

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        if self.num_recorded == self._refuses_from:
            raise RuntimeError("no graph today")
        self.num_recorded += 1
        call()
        return call


def computed_and(folder: Path, recorder: Recorder) -> tuple[SpeechT5Model, SpeechT5Model]:
    return load_folder(folder), recording(load_folder(folder), recorder.capture)


def test_recorded_steps_speak_as_computed_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpeechT5Decoder, "THRESHOLD", 0.2)
    recorder = Recorder()
    models = computed_and(folder, recorder)
    models[1].warm_up()
    num_recorded = recorder.num_recorded
    assert num_recorded == 8  # 4 and 8 sentences, 64, 128, 256 and 400 frames
    computed, recorded = (
        spoken(
            model,
            [sequences_of(model, TEXTS[i % 4], voice=VOICES[i % 4], seed=i)[0] for i in range(7)],
            arrivals=(0, 3, 3, 40, 41, 60, 70),
        )
        for model in models
    )
    for one, other in zip(computed, recorded, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=TOLERANCE)
    assert recorder.num_recorded == num_recorded, "no request waits for a recording"


def test_a_sentence_that_waits_beside_recorded_steps_goes_on_as_it_would_have(folder: Path) -> None:
    computed, recorded = computed_and(folder, Recorder())
    for model in (computed, recorded):  # the first frame, too, then depends on what is drawn
        network = vars(model)["_network"]
        for layer in network.speecht5.decoder.prenet.layers:
            layer.bias.data.fill_(1.0)
        network.speech_decoder_postnet.prob_out.bias.data.fill_(-1000.0)  # nor does it end soon
    (expected,) = spoken(computed, sequences_of(computed, TEXTS[0], seed=1))
    (waiting,), (other,) = sequences_of(recorded, TEXTS[0], seed=1), sequences_of(recorded, TEXTS[1], seed=2)
    for _ in range(40):
        recorded.step([Granted(waiting, 1)])
    spoken(recorded, [other])
    (sound,) = spoken(recorded, [waiting])
    np.testing.assert_allclose(sound, expected, atol=TOLERANCE)


@pytest.mark.parametrize("refuses_from", [0, 1])
def test_sentences_go_on_without_graphs_when_one_cannot_be_recorded(
    folder: Path, refuses_from: int, caplog: pytest.LogCaptureFixture
) -> None:
    computed, recorded = computed_and(folder, Recorder(refuses_from))
    (expected,) = spoken(computed, sequences_of(computed, TEXTS[0], seed=1))
    (sound,) = spoken(recorded, sequences_of(recorded, TEXTS[0], seed=1))
    np.testing.assert_allclose(sound, expected, atol=TOLERANCE)
    assert "no graph today" in caplog.text


@torch.inference_mode()
def test_a_graph_can_record_every_step(folder: Path) -> None:
    network: Any = Network.from_pretrained(folder).eval().to("meta")
    decoder = SpeechT5Decoder(network, max_rows=8, max_tokens=40, capture=dry_capture)
    decoder.record()
    assert len(vars(decoder)["_steps"]) == 8
