"""huggingface-hub's InferenceClient: chats, streams, calls and forms."""

from __future__ import annotations

import pytest

from tests.clients import judges
from tests.clients.conftest import Answers, Ask

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def got(ask: Ask) -> Answers:
    return ask("with_huggingface_hub.py", "huggingface-hub==2.4.0")


def test_chat(got: Answers) -> None:
    judges.knows_paris(got["chat"])


def test_stream(got: Answers) -> None:
    judges.knows_paris(got["stream"])


def test_tools(got: Answers) -> None:
    judges.calls_for_weather(got["tools"])


def test_structured(got: Answers) -> None:
    judges.is_person(got["form"])
