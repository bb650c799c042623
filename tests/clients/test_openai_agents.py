"""openai-agents: agents that call and that answer in a type, over chats and over responses."""

from __future__ import annotations

import pytest

from tests.clients import judges
from tests.clients.conftest import Answers, Ask

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def got(ask: Ask) -> Answers:
    return ask("with_openai_agents.py", "openai-agents==0.24.0")


def test_chat(got: Answers) -> None:
    judges.knows_paris(got["chat"])


def test_structured(got: Answers) -> None:
    judges.is_person(got["form"])


def test_tools(got: Answers) -> None:
    said, *cities = got["tools"]
    assert said == "mild"
    assert cities


def test_responses(got: Answers) -> None:
    judges.knows_paris(got["responses_chat"])
    judges.is_person(got["responses_form"])
    said, *cities = got["responses_tools"]
    assert said == "mild"
    assert cities
