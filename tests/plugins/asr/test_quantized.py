"""Speech models with fewer bits: what is quantized, what is measured, and the words of the real model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from sixfold.core.errors import ConfigError
from sixfold.core.family import LoadContext
from sixfold.core.registry import ResolvedModel
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.quantized_linear import QuantizedLinear
from sixfold.core.runtime.quantized_matmul import has_byte_products
from sixfold.plugins.asr.options import TransformersOptions
from sixfold.plugins.asr.quality import SpeechQuality, word_error_rate, words_of
from sixfold.plugins.asr.transformers_loader import load, read_network
from tests.plugins.asr.ct2_to_hf import convert

CLIPS = Path(__file__).resolve().parents[2] / "data" / "librivox"
INT8 = QuantizationPolicy(scheme="int8")
pytestmark = pytest.mark.skipif(not has_byte_products(), reason="this CPU has no AVX512-VNNI or -BF16")


def context(path: Path, policy: QuantizationPolicy | None = None) -> LoadContext:
    options = TransformersOptions()
    return LoadContext(model_name="m", path=path, device="cpu", num_threads=1, options=options, quantization=policy)


@pytest.fixture
def ctc_path(tmp_path: Path) -> Path:
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    tokenizer: Any = Wav2Vec2CTCTokenizer
    extractor: Any = Wav2Vec2FeatureExtractor
    processor: Any = Wav2Vec2Processor
    processor(feature_extractor=extractor(), tokenizer=tokenizer(str(tmp_path / "vocab.json"))).save_pretrained(
        tmp_path
    )
    torch.default_generator.manual_seed(3)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": (16, 16),
        "conv_kernel": (10, 3),
        "conv_stride": (160, 2),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    }
    config: Any = Wav2Vec2Config
    network: Any = Wav2Vec2ForCTC
    network(config(vocab_size=len(letters), **sizes)).save_pretrained(tmp_path)
    return tmp_path


def test_the_output_layer_keeps_its_type_unless_the_list_is_another(ctc_path: Path) -> None:
    network = read_network(context(ctc_path), INT8).model
    assert isinstance(network.wav2vec2.encoder.layers[0].attention.q_proj, QuantizedLinear)
    assert type(network.lm_head) is torch.nn.Linear
    every = read_network(context(ctc_path), QuantizationPolicy(scheme="int8", skip=())).model
    assert isinstance(every.lm_head, QuantizedLinear)
    model = load(context(ctc_path, INT8))
    assert str(model.info.details["quantization"]).startswith("int8 weights: ")


def test_the_report_counts_words_and_says_what_it_needs(ctc_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --inputs FOLDER"):
        SpeechQuality(context(ctc_path), None)
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "transcription.tsv").write_text("0880\the was not an ill disposed young man\n")
    with pytest.raises(ConfigError, match="no recording '0880'"):
        SpeechQuality(context(ctc_path), folder)
    (folder / "0880.flac").write_bytes((CLIPS / "0880.flac").read_bytes())
    probe = SpeechQuality(context(ctc_path), folder)
    assert probe.inputs_text.endswith("clips, 8 words")
    base = probe.measure(None, timed=False)
    assert base.figures["words_changed"] == 0
    assert probe.measure(INT8, timed=True).weight_bytes < base.weight_bytes


@pytest.mark.parametrize(
    ("found", "expected", "rate"),
    [
        (["a b c"], ["a b c"], 0.0),
        (["a c"], ["a b c"], 1 / 3),
        (["a x b c"], ["a b c"], 1 / 3),
        (["", "d"], ["a b", "d"], 2 / 3),
    ],
)
def test_errors_are_words_to_insert_delete_or_replace(
    found: Sequence[str], expected: Sequence[str], rate: float
) -> None:
    assert word_error_rate([text.split() for text in found], [text.split() for text in expected]) == pytest.approx(rate)


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert words_of("He wasn't, an ill-disposed MAN.") == ["he", "wasn't", "an", "ill", "disposed", "man"]


@pytest.mark.models
def test_the_real_model_hears_the_same_words_with_8_bits(speech_entry: ResolvedModel, tmp_path: Path) -> None:
    convert(speech_entry.path, tmp_path)
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "0880.flac").write_bytes((CLIPS / "0880.flac").read_bytes())
    (folder / "transcription.tsv").write_text("0880\the was not an ill disposed young man\n")
    probe = SpeechQuality(context(tmp_path), folder)
    assert probe.measure(None, timed=False).figures["word_error_rate"] == 0
    assert probe.measure(INT8, timed=False).figures == {"word_error_rate": 0, "words_changed": 0}
