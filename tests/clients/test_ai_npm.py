"""npm's ai with its openai-compatible provider."""

from __future__ import annotations

import json

import pytest

from tests.clients import judges
from tests.clients.conftest import Answers, Ask

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def got(ask: Ask) -> Answers:
    return ask("with_ai.mjs", "ai@6.0.326", "@ai-sdk/openai-compatible@2.0.92")


def test_chat(got: Answers) -> None:
    judges.knows_paris(got["chat"])


def test_stream(got: Answers) -> None:
    judges.knows_paris(got["stream"])


def test_tools(got: Answers) -> None:
    judges.calls_for_weather(got["tools"])


def test_embeddings(got: Answers) -> None:
    judges.are_meals_and_an_engine(got["embed"])


def test_images(got: Answers) -> None:
    judges.is_red_circle(got["draw"])


def test_structured(got: Answers) -> None:
    assert set(json.loads(got["form"])) == {"city"}
