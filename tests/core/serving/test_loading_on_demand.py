"""Requests for a model that is not in memory: they wait for it, within bounds, and hold it while they run."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator

import pytest

from sixfold.core.errors import NotReady
from sixfold.core.serving.context import new_context
from sixfold.core.serving.data_folder import DataFolder
from sixfold.core.serving.directory import ModelState
from sixfold.core.serving.services import ModalityServices
from sixfold.core.serving.settings import ServerSettings
from tests.core.serving.fake_replica import TIMEOUT_S, EchoInput, FakeDirectory, FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread
from tests.core.serving.test_streams import begin, hang_up

ASK = {"model": "parrot", "input": "a b"}


@pytest.fixture
def parrot(replica: FakeReplica) -> FakeModel:
    """One that was never loaded."""
    return FakeModel("parrot", replicas=[replica], state=ModelState.UNLOADED, info=None, loads_on_demand=True)


@pytest.fixture
def served(parrot: FakeModel) -> Iterator[ServerThread]:
    with ServerThread(parrot) as server:
        yield server


def answer(connection: http.client.HTTPConnection) -> tuple[int, http.client.HTTPMessage, object]:
    response = connection.getresponse()
    try:
        return response.status, response.headers, json.loads(response.read())
    finally:
        connection.close()


def test_requests_wait_until_the_model_is_loaded_and_are_answered_once(served: ServerThread, parrot: FakeModel) -> None:
    connections = [begin(served, ASK) for _ in range(3)]
    for place in [parrot.waiting.get(timeout=TIMEOUT_S) for _ in connections]:
        place.load()
    for connection in connections:
        status, _headers, body = answer(connection)
        assert (status, body) == (200, {"model": "parrot", "text": "a b"})
    assert parrot.replicas[0].num_submitted == 3


def test_the_model_is_held_for_as_long_as_the_request_runs(parrot: FakeModel, replica: FakeReplica) -> None:
    replica.by_hand = True
    with ServerThread(parrot) as served:
        connection = begin(served, ASK)
        parrot.waiting.get(timeout=TIMEOUT_S).load()
        submitted = replica.next()
        held: list[int] = []
        served.in_loop(lambda: held.append(parrot.num_users))
        submitted.finish("a b")
        assert answer(connection)[0] == 200
        assert held == [1]
    assert parrot.num_users == 0


def test_a_model_that_does_not_load_before_the_deadline_gets_503_and_a_time_to_retry(
    served: ServerThread, parrot: FakeModel
) -> None:
    found = served.echo(headers={"x-request-timeout-s": "0.05"})
    assert (found.status, found.error["code"]) == (503, "loading")
    assert int(found.headers["retry-after"]) > 0
    assert parrot.waiting.get(timeout=TIMEOUT_S).given_up.wait(TIMEOUT_S)
    assert served.metric("sixfold:admission_rejections_total", model_name="parrot", reason="loading") == 1.0


def test_a_model_that_cannot_be_loaded_gets_the_reason_and_a_time_to_retry(
    served: ServerThread, parrot: FakeModel
) -> None:
    connection = begin(served, ASK)
    place = parrot.waiting.get(timeout=TIMEOUT_S)
    place.refuse(NotReady("There is no room.", code="no_memory", retry_after_s=10.0))
    status, headers, body = answer(connection)
    assert (status, headers["retry-after"]) == (503, "10")
    assert isinstance(body, dict) and body["error"]["code"] == "no_memory"


def test_a_client_that_leaves_gives_its_place_up(served: ServerThread, parrot: FakeModel) -> None:
    connection = begin(served, ASK)
    place = parrot.waiting.get(timeout=TIMEOUT_S)
    hang_up(connection)
    assert place.given_up.wait(TIMEOUT_S)
    assert parrot.replicas[0].num_submitted == 0
    # The server is none the worse for it.
    connection = begin(served, ASK)
    parrot.waiting.get(timeout=TIMEOUT_S).load()
    assert answer(connection)[0] == 200


def test_a_server_that_goes_down_answers_those_who_wait(parrot: FakeModel) -> None:
    with ServerThread(parrot, settings=ServerSettings(drain_timeout_s=0.05)) as served:
        connection = begin(served, ASK)
        place = parrot.waiting.get(timeout=TIMEOUT_S)
        served.listening.lifecycle.drain_threadsafe()
        status, _headers, body = answer(connection)
        assert status == 503
        assert isinstance(body, dict) and body["error"]["code"] == "draining"
        assert place.given_up.is_set()


def test_an_unloaded_model_is_listed_as_such(served: ServerThread) -> None:
    (listed,) = served.ask("GET", "/v1/models").json["data"]
    assert (listed["id"], listed["state"]) == ("parrot", "unloaded")


async def test_work_in_the_background_finds_the_model_that_was_waited_for(parrot: FakeModel) -> None:
    services = ModalityServices(new_context(ServerSettings(), FakeDirectory(parrot)), DataFolder(None), "kitchen")
    with pytest.raises(NotReady):
        services.background("parrot", "echo", EchoInput(("a",)), tenant="anonymous")
    assert parrot.waiting.get_nowait().future.cancelled()
    waiting = asyncio.create_task(services.wait_ready("parrot", "echo", tenant="anonymous"))
    await asyncio.sleep(0)
    parrot.waiting.get_nowait().load()
    assert (await waiting).name == "parrot"
    run = services.background("parrot", "echo", EchoInput(("a", "b")), tenant="anonymous")
    await asyncio.sleep(0)  # the wait's own hold has ended
    assert parrot.num_users == 1
    assert (await run.result()).result.text == "a b"
    assert parrot.num_users == 0
