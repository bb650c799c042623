"""instructor, whose pins conflict with those of OpenAI's newer client: it gets whole objects."""

from __future__ import annotations

import pytest

from tests.clients import judges
from tests.clients.conftest import Answers, Ask

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def got(ask: Ask) -> Answers:
    return ask("with_instructor.py", "instructor==1.17.0")


def test_tools(got: Answers) -> None:
    judges.is_person(got["tools"])


def test_structured(got: Answers) -> None:
    judges.is_person(got["form"])
