"""A server with one model, for the tests that need no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core.serving.fake_replica import FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread


@pytest.fixture
def replica() -> FakeReplica:
    return FakeReplica()


@pytest.fixture
def served(replica: FakeReplica) -> Iterator[ServerThread]:
    with ServerThread(FakeModel("parrot", aliases=("org/parrot-1",), replicas=[replica])) as server:
        yield server
