"""The end of a server: what SIGTERM, a second signal and SIGHUP do to a real process."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from sixfold.core.errors import UsageError
from sixfold.core.serving import lifecycle
from sixfold.core.serving.server import SixfoldServer
from sixfold.core.serving.settings import ServerSettings
from tests.core.serving.fake_replica import TIMEOUT_S, EchoAPI, FakeDirectory


class Server:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.port = int(self.line())

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)

    def begin_stream(self) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self.connect()
        connection.request("POST", "/v1/echo", json.dumps({"model": "parrot", "input": "a", "stream": True}))
        assert self.line() == "arrived"
        response = connection.getresponse()
        assert response.readline() == b'data: {"text":"a"}\n'
        return connection, response

    def signal_and_see(self, connection: http.client.HTTPConnection, number: int) -> None:
        """Sends the signal and waits until the server acts on it: ``/ready`` turns to draining."""
        self.process.send_signal(number)
        while True:
            connection.request("GET", "/ready")
            if json.loads(connection.getresponse().read())["status"] == "draining":
                return


@contextmanager
def running(drain_timeout_s: float, *options: str) -> Generator[Server]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.core.serving.draining_server", str(drain_timeout_s), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Server(process)
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_end_and_refuses_new_ones(number: int) -> None:
    with running(drain_timeout_s=TIMEOUT_S) as server:
        connection, response = server.begin_stream()
        other = server.connect()
        server.signal_and_see(other, number)
        other.request("GET", "/health")
        assert other.getresponse().read() == b'{"status":"ok"}'
        other.request("POST", "/v1/echo", json.dumps({"model": "parrot", "input": "a"}))
        refused = other.getresponse()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert json.loads(refused.read())["error"]["code"] == "draining"
        other.close()
        server.release()
        assert response.read() == b"\ndata: [DONE]\n\n"
        connection.close()
        assert server.process.wait(TIMEOUT_S) == 0
        assert server.line() == "models left"


def test_an_idle_server_stops_at_once_also_with_idle_connections() -> None:
    with running(drain_timeout_s=TIMEOUT_S) as server:
        idle = server.connect()
        idle.request("GET", "/health")
        idle.getresponse().read()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT_S) == 0
        idle.close()


def test_requests_that_outlast_the_drain_are_told_so() -> None:
    with running(drain_timeout_s=0.05) as server:
        connection, response = server.begin_stream()
        server.process.send_signal(signal.SIGTERM)
        rest = response.read()
        assert b'"code":"draining"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        connection.close()
        assert server.process.wait(TIMEOUT_S) == 0
        assert server.line() == "models left"


def test_a_second_signal_stops_at_once() -> None:
    with running(drain_timeout_s=10 * TIMEOUT_S) as server:
        connection, response = server.begin_stream()
        other = server.connect()
        server.signal_and_see(other, signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
        assert server.line() == "models left"
        response.close()
        connection.close()
        other.close()


def assert_serves_and_ends(server: Server) -> None:
    connection = server.connect()
    connection.request("GET", "/ready")
    assert connection.getresponse().status == 200
    connection.close()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(TIMEOUT_S) == 0


def test_sighup_reloads_and_nothing_else() -> None:
    with running(drain_timeout_s=TIMEOUT_S) as server:
        server.process.send_signal(signal.SIGHUP)
        assert server.line() == "reload"
        assert_serves_and_ends(server)


def test_sighup_does_not_end_a_server_that_has_nothing_to_read_again() -> None:
    with running(TIMEOUT_S, "no-reload") as server:
        server.process.send_signal(signal.SIGHUP)
        assert_serves_and_ends(server)


def test_a_port_in_use_is_the_operators_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = SixfoldServer([EchoAPI()], FakeDirectory(), ServerSettings(port=port))
        with pytest.raises(UsageError, match=rf"port {port}.*server\.port"):
            lifecycle.run(server)
