"""The probabilities are those of transformers alone; the conformance kit, which pytest runs as well, does the rest."""

from pathlib import Path

import pytest
import torch
from sixfold_classify.model import Classifier
from sixfold_classify.plugin import Texts
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig, RobertaConfig, T5Config

from sixfold.core import ContextLengthExceeded, LoadContext, Request

MODEL = Path(__file__).parents[1] / "model"


def classifier() -> Classifier:
    return Classifier(LoadContext(model_name="mood", path=MODEL, device="cpu", num_threads=1, options=None))


def asked(*texts: str) -> Request[Texts]:
    return Request(request_id="1", input=Texts(list(texts)), arrived_s=0.0)


def test_the_probabilities_are_those_of_transformers_alone() -> None:
    ours = classifier()
    rows = ours.forward(ours.items(asked("so good", "a bad bad day")))
    network = AutoModelForSequenceClassification.from_pretrained(MODEL).eval()
    alone = network(**AutoTokenizer.from_pretrained(MODEL)("so good", return_tensors="pt")).logits.softmax(-1)[0]
    assert torch.allclose(torch.tensor(rows[0]), alone, atol=1e-5)


def test_a_text_over_the_models_limit_is_refused() -> None:
    with pytest.raises(ContextLengthExceeded):
        classifier().items(asked("so " * 100))


def saved(config: PretrainedConfig, folder: Path, *, max_tokens: int | None) -> Classifier:
    """A classifier of random weights with the words of the tiny model."""
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    if max_tokens is not None:
        tokenizer.model_max_length = max_tokens
    tokenizer.save_pretrained(folder)
    return Classifier(LoadContext(model_name="mood", path=folder, device="cpu", num_threads=1, options=None))


def test_a_position_that_no_token_may_use_is_no_room(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=9, max_position_embeddings=17, pad_token_id=0, **sizes)
    ours = saved(config, tmp_path, max_tokens=16)
    ours.forward(ours.items(asked("so " * 14)))
    with pytest.raises(ContextLengthExceeded):
        ours.items(asked("so " * 15))


def test_a_model_without_positions_is_bounded_by_its_tokenizer(tmp_path: Path) -> None:
    config = T5Config(vocab_size=9, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, num_labels=3)
    with pytest.raises(ContextLengthExceeded):
        saved(config, tmp_path, max_tokens=16).items(asked("so " * 15))
