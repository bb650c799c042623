"""Other people's clients get right answers: one test for each cell of docs/clients.md that `roster.py` fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.clients.conftest import Ask
from tests.clients.roster import CLIENTS, Client

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="session")
def got(request: pytest.FixtureRequest, ask: Ask) -> tuple[Client, Mapping[str, Any]]:
    """A client, asked once, and what it got for each cell."""
    client: Client = request.param
    return client, ask(client)


@pytest.mark.parametrize(
    ("got", "cell"),
    [
        pytest.param(client, cell, id=f"{client.script.partition('.')[0].removeprefix('with_')}-{cell}")
        for client in CLIENTS
        for cell in client.cells
    ],
    indirect=["got"],
)
def test_a_client_gets_what_it_asked_for(got: tuple[Client, Mapping[str, Any]], cell: str) -> None:
    client, answers = got
    client.judge(cell, answers[cell])
