"""Server-sent events over real sockets: exact bytes, failures in the middle, keep-alive, and clients that leave."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from openai import APIError, OpenAI, Stream

from sixfold.core.errors import ContextLengthExceeded, StepFailed
from sixfold.core.serving.settings import ServerSettings
from tests.core.serving.fake_replica import TIMEOUT_S, FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread

ASK = {"model": "parrot", "input": "a b", "stream": True}


@pytest.fixture
def replica() -> FakeReplica:
    return FakeReplica(by_hand=True)


@pytest.fixture
def served(replica: FakeReplica) -> Iterator[ServerThread]:
    with ServerThread(FakeModel("parrot", replicas=[replica])) as server:
        yield server


def begin(served: ServerThread, body: object = ASK) -> http.client.HTTPConnection:
    connection = served.connect()
    connection.request("POST", "/v1/echo", json.dumps(body), {"content-type": "application/json"})
    return connection


def hang_up(connection: http.client.HTTPConnection) -> None:
    """Closes the socket itself; ``close`` leaves it open while a response holds it."""
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


def test_a_stream_is_exactly_its_frames(served: ServerThread, replica: FakeReplica) -> None:
    connection = begin(served)
    submitted = replica.next()
    submitted.say("a")
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["content-encoding"] is None
    submitted.say("b")
    submitted.finish()
    assert response.read() == b'data: {"text":"a"}\n\ndata: {"text":"b"}\n\ndata: [DONE]\n\n'
    connection.close()


def test_the_frames_of_one_step_are_one_chunk_and_are_not_held_back(served: ServerThread, replica: FakeReplica) -> None:
    ask = json.dumps(ASK).encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(ask) + ask)
        reader = connection.makefile("rb")
        submitted = replica.next()
        submitted.say("a", "b", "c")
        while reader.readline() != b"\r\n":
            pass
        # The request is still open: what has come is what was sent at once.
        size = int(reader.readline(), 16)
        assert reader.read(size) == b"".join(b'data: {"text":"%s"}\n\n' % word for word in (b"a", b"b", b"c"))
        submitted.finish()
        assert b"".join(reader.readline() for _ in range(4)).endswith(b"data: [DONE]\n\n")


def test_an_error_before_the_first_event_has_its_status(served: ServerThread, replica: FakeReplica) -> None:
    connection = begin(served)
    replica.next().fail(ContextLengthExceeded("The input has 600 tokens, the model takes 512.", param="input"))
    response = connection.getresponse()
    assert response.status == 400
    assert json.loads(response.read())["error"]["code"] == "context_length_exceeded"
    connection.close()


def test_an_error_after_the_first_event_is_a_frame_and_the_stream_ends_in_order(
    served: ServerThread, replica: FakeReplica
) -> None:
    connection = begin(served)
    submitted = replica.next()
    submitted.say("a")
    response = connection.getresponse()
    submitted.say("b")
    submitted.fail(StepFailed("The model failed on this request."))
    frames = response.read().split(b"\n\n")
    assert frames[:2] == [b'data: {"text":"a"}', b'data: {"text":"b"}']
    assert json.loads(frames[2].removeprefix(b"data: ")) == {
        "error": {
            "message": "The model failed on this request.",
            "type": "server_error",
            "param": None,
            "code": "model_step_failed",
        }
    }
    assert frames[3:] == [b"data: [DONE]", b""]
    connection.close()


def test_a_defect_in_a_stream_is_a_frame_without_details_and_frees_the_slot(
    served: ServerThread, replica: FakeReplica
) -> None:
    connection = begin(served)
    submitted = replica.next()
    submitted.say("defect")
    body = connection.getresponse().read()
    assert b"internal_error" in body
    assert b"secret" not in body
    assert body.endswith(b"data: [DONE]\n\n")
    assert submitted.cancelled.wait(TIMEOUT_S)
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_at_once(served: ServerThread, replica: FakeReplica, stream: bool) -> None:
    connection = begin(served, {**ASK, "stream": stream})
    submitted = replica.next()
    if stream:
        submitted.say("a")
        assert connection.getresponse().readline() == b'data: {"text":"a"}\n'
    hang_up(connection)
    assert submitted.cancelled.wait(TIMEOUT_S)
    assert served.metric("sixfold:requests_failed_total", model_name="parrot", reason="request_cancelled") == 1
    assert served.metric("sixfold:num_requests_running", model_name="parrot") == 0


def test_a_client_that_leaves_before_its_stream_began_frees_its_slot(
    served: ServerThread, replica: FakeReplica
) -> None:
    connection = begin(served)
    submitted = replica.next()
    connection.close()
    assert submitted.cancelled.wait(TIMEOUT_S)


def test_a_finished_request_is_not_cancelled(served: ServerThread, replica: FakeReplica) -> None:
    connection = begin(served)
    submitted = replica.next()
    submitted.finish()
    assert connection.getresponse().read() == b"data: [DONE]\n\n"
    connection.close()
    assert served.metric("sixfold:request_success_total", model_name="parrot") == 1
    assert not submitted.cancelled.is_set()


def test_one_connection_carries_many_requests(served: ServerThread, replica: FakeReplica) -> None:
    connection = begin(served)
    for _ in range(3):
        submitted = replica.next()
        submitted.say("a")
        submitted.finish()
        assert connection.getresponse().read() == b'data: {"text":"a"}\n\ndata: [DONE]\n\n'
        connection.request("POST", "/v1/echo", json.dumps(ASK))
    replica.next().finish()
    connection.getresponse().read()
    connection.close()


def test_a_silent_stream_sends_comments_when_asked_to() -> None:
    replica = FakeReplica(by_hand=True)
    settings = ServerSettings(sse_keep_alive_s=0.01)
    with ServerThread(FakeModel("parrot", replicas=[replica]), settings=settings) as served:
        connection = begin(served)
        submitted = replica.next()
        submitted.say("a")
        response = connection.getresponse()
        lines = [response.readline() for _ in range(4)]
        assert lines == [b'data: {"text":"a"}\n', b"\n", b": keep-alive\n", b"\n"]
        submitted.finish()
        rest = response.read().replace(b": keep-alive\n\n", b"")
        assert rest == b"data: [DONE]\n\n"
        connection.close()


def test_a_worker_that_misses_the_deadline_does_not_keep_the_client_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sixfold.core.serving.call._WORKER_GRACE_S", 0.0)
    replica = FakeReplica(by_hand=True)
    with ServerThread(FakeModel("parrot", replicas=[replica])) as served:
        connection = served.connect()
        body = json.dumps({"model": "parrot", "input": "a"})
        connection.request("POST", "/v1/echo", body, {"x-request-timeout-s": "0.5"})
        submitted = replica.next()
        response = connection.getresponse()
        assert response.status == 504
        assert json.loads(response.read())["error"]["code"] == "deadline_exceeded"
        assert submitted.cancelled.is_set()
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_models_own_limit_holds_whatever_its_worker_does(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sixfold.core.serving.access.WORKER_GRACE_S", 0.0)
    replica = FakeReplica(by_hand=True)
    with ServerThread(FakeModel("parrot", replicas=[replica], request_timeout_s=0.5)) as served:
        answer = served.ask("POST", "/v1/echo", {**ASK, "stream": stream})
        assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
        submitted = replica.next()
        assert submitted.cancelled.is_set()
        assert submitted.request.deadline_s is not None
        assert submitted.request.deadline_s < time.monotonic()


def test_a_client_that_stops_reading_is_cut_off_after_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sixfold.core.serving.call._WORKER_GRACE_S", 0.0)
    monkeypatch.setattr("sixfold.core.serving.call._READER_GRACE_S", 0.0)
    replica = FakeReplica(by_hand=True)
    with ServerThread(FakeModel("parrot", replicas=[replica])) as served:
        connection = served.connect()
        # Long enough for the answer to begin on a busy machine: a deadline before that would be a 504.
        connection.request("POST", "/v1/echo", json.dumps(ASK), {"x-request-timeout-s": "1"})
        submitted = replica.next()
        submitted.say("x" * 16_000_000)  # more than all buffers on the way hold
        while served.metric("sixfold:http_requests_total", route="/v1/echo", status="200") == 0:
            assert served.server.drain.num_running <= 1
        assert submitted.cancelled.is_set()
        assert served.server.drain.num_running == 0
        hang_up(connection)


def test_the_openai_client_reads_frames_and_raises_on_one_with_an_error(
    served: ServerThread, replica: FakeReplica
) -> None:
    def answer() -> None:
        submitted = replica.next()
        submitted.say("a")
        submitted.fail(StepFailed("The model failed on this request."))

    thread = threading.Thread(target=answer)  # the client waits for the first event before it returns a stream
    thread.start()
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.post("/echo", cast_to=object, body=ASK, stream=True, stream_cls=Stream[object])
        assert next(stream) == {"text": "a"}
        with pytest.raises(APIError) as failure:
            next(stream)
    assert failure.value.code == "model_step_failed"
    thread.join(TIMEOUT_S)
