"""LlamaIndex: chats, calls, embeddings, and reranking by two of its packages."""

from __future__ import annotations

import pytest

from tests.clients import judges
from tests.clients.conftest import Answers, Ask

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.timeout(1800)]
PINS = (
    "llama-index-llms-openai-like==0.8.1",
    "llama-index-embeddings-openai-like==0.4.0",
    "llama-index-postprocessor-cohere-rerank==0.10.0",
    "llama-index-postprocessor-jinaai-rerank==0.6.0",
)


@pytest.fixture(scope="module")
def got(ask: Ask) -> Answers:
    return ask("with_llama_index.py", *PINS)


def test_chat(got: Answers) -> None:
    judges.knows_paris(got["chat"])


def test_stream(got: Answers) -> None:
    judges.knows_paris(got["stream"])


def test_embeddings(got: Answers) -> None:
    judges.are_meals_and_an_engine(got["embed"])


def test_rerank_by_cohere(got: Answers) -> None:
    judges.puts_penicillin_first(got["rerank_by_cohere"])


def test_rerank_by_jina(got: Answers) -> None:
    judges.puts_penicillin_first(got["rerank_by_jina"])


def test_tools(got: Answers) -> None:
    assert got["tools"]
    assert set(got["tools"]) == {"get_weather"}
