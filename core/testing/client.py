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
from sixfold.core.testing.failure import fail

_POLL_S = 0.02
_JOB_COMPLETED, _JOB_FAILED = "completed", "failed"
_MORE_TIME = "If it needs longer, give its entry a longer limits.request_timeout_s."

ANSWER_PATIENCE_S = 3600.0
"""For an answer of a model whose requests may take for ever: some take many minutes on a CPU."""


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
    """A request; its answer is read when it is asked for."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        on_closed: Callable[[Sent], None],
        *,
        what: str,
        patience_s: float,
    ) -> None:
        self._connection = connection
        self._on_closed = on_closed
        self._what = what
        self._patience_s = patience_s
        self._answer: Answer | None = None

    def answer(self) -> Answer:
        """Waits for the whole answer; the same one when asked again.

        Raises:
            CheckFailed: It does not come in time.
            OSError: It breaks off.
        """
        if self._answer is None:
            self._answer = self._read()
        return self._answer

    def _read(self) -> Answer:
        try:
            response = self._connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(status=response.status, headers=headers, body=response.read())
        except TimeoutError:
            fail(f"{self._what} was not answered: nothing came for {self._patience_s:g} s. {_MORE_TIME}")
        finally:
            self.leave()

    @property
    def is_answered(self) -> bool:
        """Whether something of the answer has come."""
        return self._answer is not None or bool(select.select([self._connection.sock], [], [], 0)[0])

    def leave(self) -> None:
        """Closes the connection, as a client does that has gone."""
        self._connection.close()
        self._on_closed(self)


class Client:
    """Talks to one server of this machine; leaving the block leaves all requests whose answers were not read.

    Args:
        port: Where it listens.
        patience_s: For an answer, or for a job to end; as long as a correct model may take.
    """

    def __init__(self, port: int, *, patience_s: float = ANSWER_PATIENCE_S) -> None:
        self._port = port
        self._patience_s = patience_s
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
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._patience_s)
        sent = Sent(connection, self._unread.discard, what=f"{method} {path}", patience_s=self._patience_s)
        self._unread.add(sent)
        connection.request(method, path, body=body, headers={} if body is None else {"content-type": media_type})
        return sent

    def get(self, path: str) -> Answer:
        """The answer to a GET."""
        return self.send_raw("GET", path).answer()

    def content(self, probe: Probe, sent: Sent) -> object:
        """Waits for the answer and takes its content out; of a job that of its file.

        Raises:
            UnexpectedAnswer: It is no 200.
            CheckFailed: The job failed, or nothing comes in time.
        """
        answer = sent.answer()
        if answer.status != 200:
            raise UnexpectedAnswer(probe, answer)
        if probe.is_job:
            answer = self._job_content(probe, answer)
        return probe.content(answer.json if answer.is_json else answer.body)

    def job(self, probe: Probe, created: Answer) -> Answer:
        """How a job stands.

        Args:
            probe: What was sent.
            created: The answer to it.

        Raises:
            UnexpectedAnswer: It was refused, or can't be found.
            CheckFailed: It failed.
        """
        if created.status != 200:
            raise UnexpectedAnswer(probe, created)
        job = self.get(f"{probe.path}/{created.json['id']}")
        if job.status != 200:
            raise UnexpectedAnswer(probe, job)
        if job.json["status"] == _JOB_FAILED:
            fail(f"The job of POST {probe.path} failed: {job.body[:500]!r}")
        return job

    def _job_content(self, probe: Probe, created: Answer) -> Answer:
        until_s = time.monotonic() + self._patience_s
        while (job := self.job(probe, created)).json["status"] != _JOB_COMPLETED:
            if time.monotonic() > until_s:
                fail(
                    f"The job of POST {probe.path} did not end in {self._patience_s:g} s: {job.body[:500]!r}. {_MORE_TIME}"
                )
            time.sleep(_POLL_S)
        content = self.get(f"{probe.path}/{created.json['id']}/content")
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
