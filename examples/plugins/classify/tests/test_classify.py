"""The probabilities are those of transformers alone; the conformance kit, which pytest runs as well, does the rest."""

from pathlib import Path

import pytest
import torch
from sixfold_classify.model import Classifier
from sixfold_classify.plugin import Texts
from transformers import AutoModelForSequenceClassification, AutoTokenizer

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
