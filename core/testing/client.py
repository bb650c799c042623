"""The client of the kit: sends probes over HTTP/1.1, each on a connection of its own, and can leave in the middle."""

from __future__ import annotations

import http.client
import json
import secrets
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from sixfold.core.probe import Fields, Probe
from sixfold.core.testing.gate import PATIENCE_S

_POLL_S = 0.02
_JOB_ENDED = ("completed", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_json(self) -> bool:
        """Whether it says so."""
        return self.headers.get("content-type", "").partition(";")[0] == "application/json"

    @property
    def json(self) -> Any:
        """The parsed body.

        Raises:
            ValueError: It is no JSON.
        """
        return json.loads(self.body)


class Sent:
    """A request whose answer was not read yet."""

    def __init__(self, connection: http.client.HTTPConnection, on_closed: Callable[[Sent], None]) -> None:
        self._connection = connection
        self._on_closed = on_closed

    def answer(self) -> Answer:
        """Waits for the whole answer.

        Raises:
            OSError: It does not come in time, or breaks off.
        """
        try:
            response = self._connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(status=response.status, headers=headers, body=response.read())
        finally:
            self.leave()

    @property
    def is_answered(self) -> bool:
        """Whether something of the answer has come."""
        return bool(select.select([self._connection.sock], [], [], 0)[0])

    def leave(self) -> None:
        """Closes the connection, as a client does that has gone."""
        self._connection.close()
        self._on_closed(self)


class Client:
    """Talks to one server of this machine; leaving the block leaves all requests whose answers were not read.

    Args:
        port: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._unread: set[Sent] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for sent in tuple(self._unread):
            sent.leave()

    def send(self, probe: Probe, fields: Fields) -> Sent:
        """Sends a probe's request with these fields."""
        body, media_type = form_body(fields) if probe.is_form else (json.dumps(fields).encode(), "application/json")
        return self.send_raw("POST", probe.path, body, media_type)

    def send_raw(self, method: str, path: str, body: bytes | None = None, media_type: str = "application/json") -> Sent:
        """Sends any request."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        sent = Sent(connection, self._unread.discard)
        self._unread.add(sent)
        connection.request(method, path, body=body, headers={} if body is None else {"content-type": media_type})
        return sent

    def get(self, path: str) -> Answer:
        """The answer to a GET."""
        return self.send_raw("GET", path).answer()

    def content(self, probe: Probe, sent: Sent) -> object:
        """Waits for the answer and takes its content out; of a job that of its file.

        Raises:
            UnexpectedAnswer: It is no 200, or the job failed.
        """
        answer = sent.answer()
        if answer.status != 200:
            raise UnexpectedAnswer(probe, answer)
        if probe.is_job:
            answer = self._job_content(probe, answer)
        return probe.content(answer.json if answer.is_json else answer.body)

    def _job_content(self, probe: Probe, created: Answer) -> Answer:
        place, until_s = f"{probe.path}/{created.json['id']}", time.monotonic() + PATIENCE_S
        while (job := self.get(place)).status == 200 and job.json["status"] not in _JOB_ENDED:
            if time.monotonic() > until_s:
                raise UnexpectedAnswer(probe, job)
            time.sleep(_POLL_S)
        content = self.get(f"{place}/content")
        if content.status != 200:
            raise UnexpectedAnswer(probe, content)
        return content

    def metrics(self) -> dict[str, float]:
        """The samples of ``/metrics`` by name and labels as they are written, such as ``sixfold:x{a="b"}``."""
        lines = self.get("/metrics").body.decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}


class UnexpectedAnswer(Exception):
    """An answer that is no success where one was due."""

    def __init__(self, probe: Probe, answer: Answer) -> None:
        super().__init__(f"POST {probe.path} was answered with {answer.status}: {answer.body[:500]!r}")


def form_body(fields: Fields) -> tuple[bytes, str]:
    """A multipart/form-data body and its type; lists are their name repeated, bytes are files."""
    boundary = secrets.token_hex(16)
    parts: list[bytes] = []
    for name, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            is_file = isinstance(each, bytes)
            file = f'; filename="{name}"\r\ncontent-type: application/octet-stream' if is_file else ""
            text = each if isinstance(each, bytes | str) else json.dumps(each)
            data = text if isinstance(text, bytes) else text.encode()
            head = f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"{file}\r\n\r\n'
            parts.append(head.encode() + data + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
