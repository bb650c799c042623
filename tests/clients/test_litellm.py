"""litellm against all modalities that it knows."""

from __future__ import annotations

import pytest

from tests.clients import judges
from tests.clients.conftest import Answers, Ask

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def got(ask: Ask) -> Answers:
    return ask("with_litellm.py", "litellm==1.110.2")


def test_chat(got: Answers) -> None:
    judges.knows_paris(got["chat"])


def test_stream(got: Answers) -> None:
    judges.knows_paris(got["stream"])


def test_tools(got: Answers) -> None:
    judges.calls_for_weather(got["tools"])


def test_embeddings(got: Answers) -> None:
    judges.are_meals_and_an_engine(got["embed"])


def test_rerank(got: Answers) -> None:
    judges.puts_penicillin_first(got["rerank"])


def test_speech_and_transcription(got: Answers) -> None:
    judges.heard_the_sentence(got["speak_and_hear"])


def test_images(got: Answers) -> None:
    judges.is_red_circle(got["draw"])
