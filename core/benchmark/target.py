"""One server under load: as many connections as there are requests under way, and every failure a kind of outcome."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from sixfold.core.benchmark.client import Address, Connection
from sixfold.core.benchmark.outcome import Outcome, read_answer
from sixfold.core.benchmark.workload import Sample, Workload
from sixfold.core.errors import UsageError


class Target:
    """A server. Used in one event loop; close it at the end.

    Args:
        address: Where it is.
        workload: What it is asked.
        model: The model's name there; None for the first that it lists.
        extra: Fields that each body gets, too.
        timeout_s: A request that is not done so long after it was due has failed.
    """

    def __init__(
        self, address: Address, workload: Workload, *, model: str | None, extra: Mapping[str, Any], timeout_s: float
    ) -> None:
        self._address = address
        self._workload = workload
        self._extra = extra
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []
        self.model = model or ""

    async def prepare(self) -> None:
        """Finds out the model's name, if it was not given.

        Raises:
            UsageError: The server does not answer, or lists none.
        """
        if self.model:
            return
        where = f"{self._address.host}:{self._address.port}"
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await Connection.open(self._address)
                answer = await connection.request("GET", "/v1/models")
        except (OSError, TimeoutError) as error:
            raise UsageError(f"{where} does not answer: {error or 'it took too long'}. Is the server up?") from error
        try:
            self.model = str(json.loads(answer.body)["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise UsageError(
                f"{where}/v1/models answers {answer.status} and no model. Name one with --model."
            ) from error
        self._idle.append(connection)

    async def ask(self, sample: Sample, due_s: float) -> Outcome:
        """See `sixfold.core.benchmark.schedule.Ask`."""
        body = (
            dict(sample.body) | {"model": self.model} if sample.body else self._workload.make_body(self.model, sample)
        )
        encoded = json.dumps(body | dict(self._extra)).encode()
        sent_s = time.perf_counter()
        try:
            async with asyncio.timeout(due_s + self._timeout_s - sent_s):
                connection = await self._connection()
                answer = await connection.request("POST", self._workload.path, encoded)
        except TimeoutError:
            return _failed(due_s, sent_s, "timeout")
        except ConnectionRefusedError:
            return _failed(due_s, sent_s, "refused")
        except OSError:
            return _failed(due_s, sent_s, "connection_lost")
        if connection.usable:
            self._idle.append(connection)
        return read_answer(self._workload, answer, due_s=due_s)

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return await Connection.open(self._address)

    def close(self) -> None:
        """Hangs up."""
        while self._idle:
            self._idle.pop().close()


def _failed(due_s: float, sent_s: float, kind: str) -> Outcome:
    return Outcome(due_s=due_s, sent_s=sent_s, ended_s=time.perf_counter(), error=kind)
