"""WebSockets over real connections: keys, limits, back-pressure, errors, disconnects, draining."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from sixfold.core.errors import QueueFull, StepFailed
from sixfold.core.serving.settings import ApiKeySettings, KeyLimits, ServerSettings, hash_key
from tests.core.serving.fake_replica import TIMEOUT_S, FakeModel, FakeReplica
from tests.core.serving.kitchen_api import KitchenAPI
from tests.core.serving.server_thread import ServerThread

KEYS = (ApiKeySettings(name="ward", sha256=hash_key("secret"), limits=KeyLimits(max_concurrent_requests=1)),)


def serve(replica: FakeReplica, settings: ServerSettings | None = None) -> ServerThread:
    return ServerThread(FakeModel("parrot", replicas=[replica]), apis=[KitchenAPI()], settings=settings)


@pytest.fixture
def served(replica: FakeReplica) -> Iterator[ServerThread]:
    with serve(replica) as server:
        yield server


def dial(
    served: ServerThread,
    path: str = "/v1/socket",
    headers: dict[str, str] | None = None,
    protocols: tuple[str, ...] = (),
    origin: str | None = None,
) -> ClientConnection:
    return connect(
        f"ws://127.0.0.1:{served.port}{path}",
        additional_headers={**({"origin": origin} if origin else {}), **(headers or {})},
        subprotocols=[Subprotocol(name) for name in protocols] or None,
        open_timeout=TIMEOUT_S,
        close_timeout=TIMEOUT_S,
        proxy=None,
    )


def closing(socket: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=TIMEOUT_S)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


def test_texts_and_bytes_go_both_ways_and_models_answer(served: ServerThread) -> None:
    with dial(served, headers={"x-request-id": "talk-1"}) as socket:
        assert socket.response is not None
        assert socket.response.headers["x-request-id"] == "talk-1"
        socket.send("hello there")
        assert socket.recv(timeout=TIMEOUT_S) == "hello there"
        socket.send(b"\x01\x02")
        assert socket.recv(timeout=TIMEOUT_S) == b"\x02\x01"
        socket.send("bye")
        assert closing(socket) == (4000, "bye")
    assert served.metric("sixfold:http_requests_total", route="/v1/socket", status="101") == 1


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/socket?limit=0", 400, b"invalid_value"),
        ("/v1/socket?after=nobody", 404, b"model_not_found"),
        ("/v1/nothing", 403, b""),
    ],
)
def test_an_error_before_the_handshake_has_its_status(
    served: ServerThread, path: str, status: int, code: bytes
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        dial(served, path)
    assert refused.value.response.status_code == status
    assert code in bytes(refused.value.response.body or b"")
    assert served.metric("sixfold:http_requests_total", status=str(status)) == 1


def test_a_key_may_come_in_a_header_or_a_subprotocol_and_counts_as_one_request(replica: FakeReplica) -> None:
    with serve(replica, ServerSettings(api_keys=KEYS)) as served:
        for wrong in ({}, {"authorization": "Bearer no"}):
            with pytest.raises(InvalidStatus) as refused:
                dial(served, headers=wrong)
            assert refused.value.response.status_code == 401
        with pytest.raises(InvalidStatus):
            dial(served, protocols=("talk", "openai-insecure-api-key.no"))
        with dial(served, protocols=("talk", "openai-insecure-api-key.secret", "talk.beta")) as socket:
            assert socket.subprotocol == "talk"
            with pytest.raises(InvalidStatus) as busy:
                dial(served, headers={"authorization": "Bearer secret"})
            assert busy.value.response.status_code == 429
            assert busy.value.response.headers["retry-after"] == "1"
        with dial(served, headers={"authorization": "Bearer secret"}) as socket:
            socket.send("a")
            assert socket.recv(timeout=TIMEOUT_S) == "a"


def test_pages_of_other_origins_are_refused_unless_allowed(replica: FakeReplica) -> None:
    with serve(replica, ServerSettings(cors_origins=("https://ward.example",))) as served:
        with pytest.raises(InvalidStatus) as refused:
            dial(served, origin="https://evil.example")
        assert refused.value.response.status_code == 403
        for origin in ("https://ward.example", f"http://127.0.0.1:{served.port}"):
            with dial(served, origin=origin) as socket:
                socket.send("a")
                assert socket.recv(timeout=TIMEOUT_S) == "a"


def test_errors_after_the_handshake_are_closing_codes(served: ServerThread, replica: FakeReplica) -> None:
    with dial(served) as socket:
        socket.send("defect")
        code, reason = closing(socket)
        assert code == 1011
        assert "secret" not in reason
    replica.rejection = QueueFull("The queue is full.", retry_after_s=1.0)
    with dial(served) as socket:
        socket.send("a")
        assert closing(socket) == (1013, "The queue is full.")
    while served.metric("sixfold:http_requests_total", route="/v1/socket", status="101") < 2:
        assert served.server.drain.num_running <= 2  # counted when the socket was given back
    assert served.server.drain.num_running == 0


def test_a_model_that_fails_closes_with_its_reason() -> None:
    replica = FakeReplica(by_hand=True)
    with serve(replica) as served, dial(served) as socket:
        socket.send("a")
        replica.next().fail(StepFailed("The model failed on this request."))
        assert closing(socket) == (1011, "The model failed on this request.")


@pytest.mark.parametrize("politely", [True, False])
def test_a_client_that_leaves_frees_its_slot_at_once(politely: bool) -> None:
    replica = FakeReplica(by_hand=True)
    with serve(replica) as served:
        with dial(served) as socket:
            for _ in range(3):
                socket.send("hold")
            submitted = replica.next()
            if not politely:
                socket.socket.shutdown(2)
                assert submitted.cancelled.wait(TIMEOUT_S)
        assert submitted.cancelled.wait(TIMEOUT_S)
        assert served.metric("sixfold:requests_failed_total", model_name="parrot", reason="request_cancelled") == 1


def test_a_message_that_is_too_long_closes_with_1009(replica: FakeReplica) -> None:
    with serve(replica, ServerSettings(max_message_bytes=1024)) as served, dial(served) as socket:
        socket.send(b"x" * 1024)
        assert socket.recv(timeout=TIMEOUT_S) == b"x" * 1024
        socket.send(b"x" * 1025)
        assert closing(socket)[0] == 1009


def test_a_client_that_sends_faster_than_it_is_served_has_to_wait() -> None:
    replica = FakeReplica(by_hand=True)
    with serve(replica, ServerSettings(max_message_bytes=65536)) as served, dial(served) as socket:
        socket.send("hold")
        held = replica.next()
        all_sent = threading.Event()

        def flood() -> None:
            for _ in range(500):
                socket.send("drop" + "x" * 65000)
            all_sent.set()

        sender = threading.Thread(target=flood)
        sender.start()
        assert not all_sent.wait(1.0), "32 MB were taken though nobody asked for them"
        held.finish("held")
        assert all_sent.wait(TIMEOUT_S)
        sender.join(TIMEOUT_S)
        socket.send("a")
        replica.next().finish("a")
        assert socket.recv(timeout=TIMEOUT_S) == "a"


def test_a_worker_that_misses_the_deadline_ends_the_socket_not_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sixfold.core.serving.access.WORKER_GRACE_S", 0.0)
    replica = FakeReplica(by_hand=True)
    with serve(replica, ServerSettings(request_timeout_s=0.5)) as served, dial(served) as socket:
        socket.send("hold")
        code, reason = closing(socket)
        assert (code, reason) == (1011, "The request's deadline passed before it was done.")
        assert replica.next().cancelled.is_set()


def test_a_draining_server_refuses_sockets_and_closes_those_that_stay() -> None:
    replica = FakeReplica(by_hand=True)
    with serve(replica, ServerSettings(drain_timeout_s=0.2)) as served:
        with dial(served) as idle, dial(served) as busy:
            idle.send("a")
            replica.next().finish("a")
            assert idle.recv(timeout=TIMEOUT_S) == "a"
            busy.send("hold")
            submitted = replica.next()
            served.in_loop(served.server.drain.begin)
            with pytest.raises(InvalidStatus) as refused:
                dial(served)
            assert refused.value.response.status_code == 503
            served.listening.lifecycle.drain_threadsafe()
            assert closing(idle)[0] == 1012
            assert closing(busy)[0] == 1012
            assert submitted.cancelled.wait(TIMEOUT_S)
    assert served.exit_status == 0
