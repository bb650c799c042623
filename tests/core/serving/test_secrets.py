"""Keys and what clients send are in no log, metric or error, whatever goes wrong."""

from __future__ import annotations

import logging
import socket

import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from sixfold.core.serving.settings import ApiKeySettings, KeyLimits, ServerSettings, hash_key
from tests.core.serving.fake_replica import EchoAPI, FakeModel, FakeReplica
from tests.core.serving.kitchen_api import KitchenAPI
from tests.core.serving.server_thread import ServerThread

KEY = "sk-right-0123456789abcdef"
WRONG = "sk-wrong-0123456789abcdef"
PATIENT = "Mustermann-born-1950"


def test_keys_and_contents_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = ApiKeySettings(name="ward", sha256=hash_key(KEY), limits=KeyLimits(requests_per_minute=100))
    settings = ServerSettings(api_keys=(key,), access_log=True)
    parrot = FakeModel("parrot", replicas=[FakeReplica()])
    told: list[bytes] = []
    with ServerThread(parrot, settings=settings, apis=[EchoAPI(), KitchenAPI()]) as served:
        for secret in (KEY, WRONG):
            bearer = {"authorization": f"Bearer {secret}"}
            for headers in (bearer, {"authorization": secret}, {**bearer, "x-priority": "nonsense"}):
                for method, path, body in (
                    ("POST", "/v1/echo", {"model": "parrot", "input": PATIENT}),
                    ("POST", "/v1/echo", f'{{"model": "parrot", "input": "{PATIENT}"'.encode()),
                    ("POST", "/v1/echo", {"model": "parrot", "input": {"a": PATIENT}}),
                    ("POST", "/v1/defect", {"model": "parrot", "input": PATIENT}),
                    ("POST", "/v1/form", {"model": "parrot", "words": 7, "tags": [PATIENT]}),
                    ("GET", "/v1/none", None),
                ):
                    told.append(served.ask(method, path, body, headers).body)
            with (
                pytest.raises((WebSocketException, EOFError)),
                connect(
                    f"ws://127.0.0.1:{served.port}/v1/none",
                    subprotocols=[f"openai-insecure-api-key.{secret}"],  # type: ignore[list-item]
                ),
            ):
                pass
            with socket.create_connection(("127.0.0.1", served.port)) as raw:
                raw.sendall(f"GET / HTTP/1.1\r\nAuthorization: Bearer {secret}\r\nX: \x00\r\n\r\n".encode())
                told.append(raw.recv(65536))
        told.append(served.ask("GET", "/metrics").body)
        told.append(served.ask("GET", "/load").body)
    logged = "\n".join(
        logging.Formatter("%(name)s %(message)s").format(record)  # tracebacks, too
        for record in caplog.records
        if record.name != "websockets.client"  # the test's own
    )
    assert "a defect in the server" in logged, "something went wrong, and was logged"
    for secret in (KEY, WRONG, hash_key(KEY)):
        assert secret not in logged
        assert not any(secret.encode() in each for each in told)
    assert PATIENT not in logged
