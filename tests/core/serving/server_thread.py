"""A real server in a thread, and the few calls that tests make to it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import litserve as ls
from prometheus_client.parser import text_string_to_metric_families

from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.serving import lifecycle
from sixfold.core.serving.lifecycle import Listening
from sixfold.core.serving.server import SixfoldServer
from sixfold.core.serving.settings import ServerSettings
from sixfold.core.telemetry.tracing import Tracing
from tests.core.serving.fake_replica import TIMEOUT_S, EchoAPI, FakeDirectory, FakeModel


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


class ServerThread:
    """A real server on a free port of the loopback; leaving the block drains it."""

    def __init__(
        self,
        *models: FakeModel,
        settings: ServerSettings | None = None,
        apis: Sequence[ls.LitAPI] | None = None,
        ledger: MemoryLedger | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        settings = (settings or ServerSettings()).model_copy(update={"port": 0})
        self.directory = FakeDirectory(*models)
        self.server = SixfoldServer(
            apis if apis is not None else [EchoAPI()], self.directory, settings, ledger=ledger, tracing=tracing
        )
        self.exit_status: int | None = None
        self._ready: SimpleQueue[Listening | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.exit_status = lifecycle.run(self.server, on_listening=self._ready.put)
        except BaseException as failure:
            self._ready.put(failure)
            raise

    def __enter__(self) -> Self:
        self._thread.start()
        listening = self._ready.get(timeout=TIMEOUT_S)
        if isinstance(listening, BaseException):
            raise listening
        self.listening = listening
        self.port = listening.port
        self.url = listening.url
        return self

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        if self._thread.is_alive():
            self.listening.lifecycle.drain_threadsafe()
        self.join()

    def join(self) -> None:
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the server did not stop"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own; a body that is not bytes is sent as JSON."""
        connection = self.connect()
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            given = {"content-type": "application/json", **(headers or {})} if data is not None else dict(headers or {})
            connection.request(method, path, body=data, headers=given)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def echo(self, words: object = "a b", *, model: str = "parrot", headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("POST", "/v1/echo", {"model": model, "input": words}, headers)

    def in_loop(self, work: Callable[[], None]) -> None:
        """Runs something in the server's event loop and waits for it."""
        done = threading.Event()

        def step() -> None:
            work()
            done.set()

        self.listening.lifecycle.call_threadsafe(step)
        assert done.wait(TIMEOUT_S)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of ``/metrics``; 0 if it is not there."""
        text = self.ask("GET", "/metrics").body.decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return 0.0
