"""baseten-performance-client: many embeddings at once."""

from __future__ import annotations

import pytest

from tests.clients import judges
from tests.clients.conftest import Answers, Ask

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def got(ask: Ask) -> Answers:
    return ask("with_baseten.py", "baseten-performance-client==0.1.16")


def test_embeddings(got: Answers) -> None:
    judges.are_meals_and_an_engine(got["embed"])
