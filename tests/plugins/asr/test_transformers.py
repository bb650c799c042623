"""Models of transformers: a tiny CTC model against the library alone, and Whisper on real speech."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForCTC,
    AutoProcessor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from sixfold.core.family import LoadContext, ModelFiles
from sixfold.core.registry import ResolvedModel
from sixfold.plugins.asr.alignment import first_positions
from sixfold.plugins.asr.options import TransformersOptions
from sixfold.plugins.asr.plugin import detect_ctranslate2, detect_transformers
from sixfold.plugins.asr.schema import TranscribeInput, Transcript
from sixfold.plugins.asr.transformers_loader import load
from tests.plugins.asr.conftest import refused
from tests.plugins.asr.ct2_to_hf import convert

Drive = Callable[[Any], Any]


def load_model(path: Path, **options: Any) -> Any:
    return load(
        LoadContext(model_name="m", path=path, device="cpu", num_threads=1, options=TransformersOptions(**options))
    )


@pytest.fixture(scope="module", params=["layer", "group"])
def ctc_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("ctc")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    tokenizer: Any = Wav2Vec2CTCTokenizer
    extractor: Any = Wav2Vec2FeatureExtractor
    processor: Any = Wav2Vec2Processor
    processor(
        feature_extractor=extractor(return_attention_mask=request.param == "layer"),
        tokenizer=tokenizer(str(folder / "vocab.json")),
    ).save_pretrained(folder)
    torch.default_generator.manual_seed(3)
    config: Any = Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16,) * 7,
        feat_extract_norm=request.param,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    network: Any = Wav2Vec2ForCTC(config)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    network.save_pretrained(folder)
    return folder


async def test_ctc_windows_together_equal_the_library_alone(
    ctc_path: Path, drive: Drive, samples: dict[str, NDArray[np.int16]]
) -> None:
    processor: Any = AutoProcessor
    network: Any = AutoModelForCTC
    library, model = processor.from_pretrained(ctc_path), network.from_pretrained(ctc_path).eval()
    cut = {name: audio[: len(audio) // 160 * 160] for name, audio in samples.items()}
    wanted = [TranscribeInput(audio=audio.tobytes(), pcm_hz=16_000, wants_words=True) for audio in cut.values()]
    ours = load_model(ctc_path)
    windows = [window for one in wanted for window in _windows(ours, one)]
    results: list[Transcript] = await drive(ours).results(wanted)
    for result, window in zip(results, windows, strict=True):
        inputs = library(window, sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            ids = model(**inputs).logits[0].argmax(dim=-1)
        assert result.text == library.tokenizer.decode(ids)
        words = [word for segment in result.segments for word in segment.words]
        assert " ".join(word.text.strip() for word in words) == result.text
        assert [word.start_s for word in words] == sorted(word.start_s for word in words)


def _windows(model: Any, wanted: TranscribeInput) -> list[NDArray[np.float32]]:
    job = model.split(_request(wanted))[0]
    found = [window.samples.astype(np.float32) / 32768 for _index, window in job.next_windows()]
    return [np.pad(samples, (0, -len(samples) % 160)) for samples in found]


def _request(wanted: TranscribeInput) -> Any:
    from sixfold.core.messages import Request

    return Request(request_id="r", input=wanted, arrived_s=0.0)


async def test_a_ctc_model_refuses_what_it_can_not_do(ctc_path: Path, drive: Drive, clips: dict[str, bytes]) -> None:
    audio = clips["0880"]
    answers = await drive(load_model(ctc_path)).results(
        [
            TranscribeInput(audio=audio, task="translate"),
            TranscribeInput(audio=audio, prompt="x"),
            TranscribeInput(audio=audio, temperature=0.5),
            TranscribeInput(audio=audio, wants_logprobs=True),
        ]
    )
    params = ["model", "prompt", "temperature", "include"]
    assert all(refused(answer, param) for answer, param in zip(answers, params, strict=True))


def test_families_know_their_models(tmp_path: Path, ctc_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"alignment_heads": [], "suppress_ids": []}')
    (tmp_path / "model.bin").touch()
    assert detect_ctranslate2(ModelFiles(tmp_path)) == 100
    assert detect_transformers(ModelFiles(tmp_path)) == 0
    assert detect_transformers(ModelFiles(ctc_path)) == 80
    assert detect_ctranslate2(ModelFiles(ctc_path)) == 0


def test_the_warping_path_follows_the_cheapest_places() -> None:
    cost = np.ones((3, 9))
    cost[0, :3], cost[1, 3:7], cost[2, 7:] = -1, -1, -1
    assert first_positions(cost) == [0, 3, 7]


@pytest.mark.slow
@pytest.mark.models
async def test_whisper_of_transformers_hears_what_the_library_hears(
    speech_entry: ResolvedModel, drive: Drive, tmp_path: Path, clips: dict[str, bytes],
    samples: dict[str, NDArray[np.int16]],
) -> None:  # fmt: skip
    convert(speech_entry.path, tmp_path)
    ours = load_model(tmp_path, beam_size=1)
    network, extractor = ours._backend._model, ours._backend._extractor
    names = ["0880", "0930", "0890"]
    wanted = [TranscribeInput(audio=clips[name], wants_words=True) for name in names]
    driver = drive(ours)
    library: dict[str, str] = {}
    for name in names:
        inputs = extractor(samples[name].astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt")
        ids = network.generate(inputs.input_features, language="en", return_timestamps=True, num_beams=1)
        end = ours._backend.tokenizer.token_to_id("<|endoftext|>")
        library[name] = ours._backend.tokenizer.decode([token for token in ids[0].tolist() if token < end])
    alone: list[Transcript] = [await driver.result(one) for one in wanted]
    together: list[Transcript] = await driver.results(wanted)
    for name, one, other in zip(names, alone, together, strict=True):
        assert one.text == other.text == library[name].strip()
        assert one.language == "en"
        words = [word for segment in other.segments for word in segment.words]
        assert "".join(word.text for word in words).strip() == other.text
        assert 0 <= words[0].start_s < 0.6
        assert words[-1].end_s <= len(samples[name]) / 16_000 + 0.1
