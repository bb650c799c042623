"""What families of other packages are given for each modality: light to import, sorted, and strict about what is not honoured."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.asr.contract import TranscribeInput, VadInput, plain_sound
from sixfold.plugins.embedding.contract import (
    EmbeddingInput,
    ScoreInput,
    dense_output,
    plain_pairs,
    plain_texts,
)
from sixfold.plugins.llm.contract import ChatInput, ChatMessage, CompletionInput, SamplingParams, plain_prompt
from sixfold.plugins.tts.contract import speech_details

MODALITIES = ("llm", "embedding", "asr", "tts", "image", "video")


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_public_name_is_there_and_sorted(modality: str) -> None:
    module = importlib.import_module(f"sixfold.plugins.{modality}.contract")
    assert sorted(module.__all__) == sorted(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)


def test_contracts_import_nothing_heavy() -> None:
    names = ", ".join(f"sixfold.plugins.{modality}.contract" for modality in MODALITIES)
    code = f"import sys, {names}; print([n for n in ('torch', 'numpy', 'av', 'PIL', 'litserve') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_family_of_plain_texts_gets_texts_and_nothing_else() -> None:
    assert plain_texts(EmbeddingInput(texts=("a", "b"), input_type="query", dimensions=2)) == ("a", "b")
    for given, param in (
        (EmbeddingInput(token_ids=((1,),)), "input"),
        (EmbeddingInput(texts=("a",), prompt_name="x"), "prompt_name"),
        (EmbeddingInput(texts=("a",), truncate_tokens=3), "truncate_prompt_tokens"),
        (EmbeddingInput(texts=("a",), output_types=("sparse",)), "output_types"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            plain_texts(given)
        assert caught.value.param == param


def test_a_family_of_plain_pairs_gets_pairs_and_nothing_else() -> None:
    one = ScoreInput(queries=("q",), documents=("a", "b"), raw_scores=True, by_similarity=True, documents_field="texts")
    assert plain_pairs(one) == (("q", "a"), ("q", "b"))
    assert plain_pairs(ScoreInput(queries=("p", "q"), documents=("a", "b"))) == (("p", "a"), ("q", "b"))
    for given, param in (
        (ScoreInput(queries=("q",), documents=("a",), truncate_tokens=3), "truncate_prompt_tokens"),
        (ScoreInput(queries=("q",), documents=("a",), max_document_tokens=3), "max_tokens_per_doc"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            plain_pairs(given)
        assert caught.value.param == param


def test_vectors_are_cut_to_the_wanted_dimensions_and_keep_their_length() -> None:
    rows = [np.array([3.0, 0.0, 4.0]), np.array([0.0, 0.0, 1.0])]
    whole = dense_output(rows, EmbeddingInput(texts=("a", "b")))
    assert np.frombuffer(whole.vectors, "<f4").tolist() == [3.0, 0.0, 4.0, 0.0, 0.0, 1.0]
    cut = dense_output(rows, EmbeddingInput(texts=("a", "b"), dimensions=2))
    assert cut.dimension == 2
    assert np.frombuffer(cut.vectors, "<f4").tolist() == [5.0, 0.0, 0.0, 0.0]  # nothing is left of the second
    with pytest.raises(InvalidRequest, match="at most 3"):
        dense_output(rows, EmbeddingInput(texts=("a", "b"), dimensions=4))


def chat(**fields: Any) -> ChatInput:
    return ChatInput(messages=(ChatMessage(role="user", content="a"), ChatMessage(role="user", content="b")), **fields)


def test_a_family_of_plain_prompts_gets_one_text_and_nothing_else() -> None:
    assert plain_prompt(chat(params=SamplingParams(max_tokens=3), stream=True)) == "a\nb"
    assert plain_prompt(CompletionInput(prompts=("a",))) == "a"
    for given, param in (
        (chat(num_choices=2), "n"),
        (chat(must_call=True), "tool_choice"),
        (chat(adapter="x"), "adapter"),
        (chat(params=SamplingParams(temperature=0.5)), "temperature"),
        (chat(params=SamplingParams(num_top_logprobs=1)), "logprobs"),
        (CompletionInput(prompts=("a", "b")), "prompt"),
        (CompletionInput(prompts=((1, 2),)), "prompt"),
        (CompletionInput(prompts=("a",), echo=True), "echo"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            plain_prompt(given)
        assert caught.value.param == param
    assert plain_prompt(chat(params=SamplingParams(temperature=0.0)), honoured={"temperature"}) == "a\nb"


def test_a_family_that_only_writes_down_refuses_everything_else() -> None:
    for given, param in (
        (VadInput(pcm=b""), None),
        (TranscribeInput(audio=b"x", diarizes=True), "response_format"),
        (TranscribeInput(audio=b"x", wants_words=True), "timestamp_granularities"),
        (TranscribeInput(audio=b"x", language="de"), "language"),
        (TranscribeInput(audio=b"no audio"), "file"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            plain_sound(given)
        assert caught.value.param == param


def test_details_of_voices_are_read_back_by_the_http_face() -> None:
    details = speech_details(sample_rate_hz=8000, voices=["a", "b"], voice_aliases={"alloy": "a"})
    assert details["voices"] == "a,b"
    assert details["voice_aliases"] == "alloy=a"
    assert msgspec.json.encode(details)
