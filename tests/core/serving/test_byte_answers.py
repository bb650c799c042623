"""Answers that are no JSON: byte streams, files with ranges, other statuses and headers."""

from __future__ import annotations

import http.client
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from sixfold.core.errors import StepFailed
from tests.core.serving.fake_replica import TIMEOUT_S, FakeModel, FakeReplica, Submitted
from tests.core.serving.kitchen_api import KitchenAPI
from tests.core.serving.server_thread import ServerThread

CLIP = bytes(range(256))


@pytest.fixture
def replica() -> FakeReplica:
    return FakeReplica(by_hand=True)


@pytest.fixture
def served(replica: FakeReplica, tmp_path: Path) -> Iterator[ServerThread]:
    api = KitchenAPI()
    api.served_file = tmp_path / "clip"
    api.served_file.write_bytes(CLIP)
    with ServerThread(FakeModel("parrot", replicas=[replica]), apis=[api]) as server:
        yield server


def begin(served: ServerThread, replica: FakeReplica) -> tuple[http.client.HTTPConnection, Submitted]:
    connection = served.connect()
    connection.request("POST", "/v1/bytes", json.dumps({"text": '["a"]'}))
    return connection, replica.next()


def test_chunks_arrive_as_they_are_made(served: ServerThread, replica: FakeReplica) -> None:
    connection, submitted = begin(served, replica)
    submitted.say("one")
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    assert (response.status, headers["content-type"], headers["x-sample-rate"]) == (200, "audio/wav", "24000")
    assert headers["transfer-encoding"] == "chunked"
    assert response.read1() == b"one"
    submitted.say("two", "three")
    assert response.read(8) == b"twothree"
    submitted.finish()
    assert response.read() == b""
    connection.close()


def test_a_failure_before_the_first_chunk_has_its_status(served: ServerThread, replica: FakeReplica) -> None:
    connection, submitted = begin(served, replica)
    submitted.say("refuse")
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (500, "model_step_failed")
    connection.close()


@pytest.mark.parametrize("how", ["model", "defect"])
def test_a_failure_in_the_middle_cuts_the_connection_and_is_logged(
    served: ServerThread, replica: FakeReplica, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        connection, submitted = begin(served, replica)
        submitted.say("one")
        response = connection.getresponse()
        assert response.read1() == b"one"
        if how == "model":
            submitted.fail(StepFailed("The model failed."))
        else:
            submitted.say("defect")
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        connection.close()
        assert "its byte stream was cut" in caplog.text
    if how == "defect":
        assert submitted.cancelled.wait(TIMEOUT_S)


def test_a_client_that_leaves_a_byte_stream_frees_its_slot(served: ServerThread, replica: FakeReplica) -> None:
    connection, submitted = begin(served, replica)
    submitted.say("one")
    response = connection.getresponse()
    assert response.read1() == b"one"
    response.close()
    connection.close()
    assert submitted.cancelled.wait(TIMEOUT_S)


@pytest.mark.parametrize(
    ("header", "status", "data", "content_range"),
    [
        (None, 200, CLIP, None),
        ("bytes=10-19", 206, CLIP[10:20], "bytes 10-19/256"),
        ("bytes=-6", 206, CLIP[-6:], "bytes 250-255/256"),
        ("bytes=999-", 416, None, "bytes */256"),
    ],
)
def test_files_are_served_with_ranges(
    served: ServerThread, header: str | None, status: int, data: bytes | None, content_range: str | None
) -> None:
    answer = served.ask("GET", "/v1/file", headers={"range": header} if header else {})
    assert answer.status == status
    assert data is None or answer.body == data
    assert answer.headers.get("content-range") == content_range
    if status == 200:
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["content-disposition"] == 'attachment; filename="clip.mp4"'


def test_a_file_that_is_gone_is_404(served: ServerThread, tmp_path: Path) -> None:
    (tmp_path / "clip").unlink()
    answer = served.ask("GET", "/v1/file")
    assert (answer.status, answer.error["code"]) == (404, "not_found")
