"""An answer on its way to the client: bytes as they come, streams that go on elsewhere, and errors said as far as they can be."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from starlette.types import Receive, Scope, Send

from sixfold.core.errors import DeadlineExceeded, RequestError, WorkerDied
from sixfold.core.serving.error_responses import error_json, error_response
from sixfold.scaling.gateway.events import EventStream
from sixfold.scaling.gateway.forwarding import passed_back
from sixfold.scaling.gateway.parts import Parts
from sixfold.scaling.gateway.resume import Diverged, StreamRecord
from sixfold.scaling.gateway.upstream import AnswerTorn, Headers
from sixfold.scaling.gateway.work import Attempt, Work

_LOG = logging.getLogger(__name__)

_DEADLINE_GRACE_S = 1.0
"""A replica ends its answer at the deadline itself; the gateway does when it is this late."""
_DONE = b"data: [DONE]\n\n"


class Relay:
    """The way back of one request. Used by one task.

    Args:
        parts: Of the gateway.
        send: ASGI's.
        request_id: For logs.
    """

    def __init__(self, parts: Parts, send: Send, request_id: str) -> None:
        self._parts = parts
        self._send = send
        self._request_id = request_id
        self._started = False
        self._is_sse = False

    async def pass_on(self, attempt: Attempt, work: Work, *, resumes: bool) -> None:
        """Sends an answer to the client, to its end.

        Args:
            attempt: The answer that has begun; closed by the caller.
            work: What is done again if the stream goes on elsewhere.
            resumes: Whether it may.

        Raises:
            WorkerDied: The replica was lost, and nothing else went on.
            DeadlineExceeded: The deadline passed.
        """
        answer = attempt.answer
        self._is_sse = (answer.header("content-type") or "").startswith("text/event-stream")
        await self._start(answer.status, answer.headers)
        try:
            left_s = None if work.deadline_s is None else work.deadline_s - self._parts.clock() + _DEADLINE_GRACE_S
            async with asyncio.timeout(left_s):
                if self._is_sse:
                    await self._pass_events(attempt, work, StreamRecord() if resumes else None)
                else:
                    await self._pass_bytes(attempt, work)
        except AnswerTorn as torn:
            raise WorkerDied(
                "The server that worked on this request was lost in the middle of its answer. Try again."
            ) from torn
        except TimeoutError:
            raise DeadlineExceeded("The request's deadline passed before it was done.") from None

    async def _pass_bytes(self, attempt: Attempt, work: Work) -> None:
        answer = attempt.answer
        await self._send_part(answer.first, more=not answer.whole)
        if answer.whole:
            return
        try:
            async for chunk in answer.rest():
                await self._send_part(chunk, more=True)
        except AnswerTorn as torn:
            self._lost(attempt, work, torn)
            raise
        await self._send_part(b"", more=False)

    async def _pass_events(self, attempt: Attempt, work: Work, record: StreamRecord | None) -> None:
        """Passes a stream of events on; one that can go on elsewhere does."""
        stream = EventStream(self._send_part, record)
        try:
            await stream.pass_on(attempt.answer)
        except AnswerTorn as torn:
            self._lost(attempt, work, torn)
            if record is None:
                raise
            if not record.is_done:
                await self._resume(stream, attempt, work, torn)
        await self._send_part(b"", more=False)

    async def _resume(self, stream: EventStream, attempt: Attempt, work: Work, torn: AnswerTorn) -> None:
        parts = self._parts
        attempt.close(failed=True)
        work = replace(work, broke=True)
        for _attempt in range(1, parts.settings.retries.max_attempts):
            again = await parts.attempts.first_answer(work, is_retry=True)
            try:
                await stream.resume(again.answer)
                parts.metrics.resumes.labels(work.model or "", "done").inc()
                return
            except AnswerTorn as lost:
                self._lost(again, work, lost)
                torn = lost
            except Diverged:
                parts.metrics.resumes.labels(work.model or "", "diverged").inc()
                break
            finally:
                again.close()
        raise torn

    def _lost(self, attempt: Attempt, work: Work, torn: AnswerTorn) -> None:
        replica_id = attempt.decision.replica_id
        _LOG.warning("request %s: replica %s was lost in mid-answer: %s", self._request_id, replica_id, torn)
        self._parts.metrics.lost.labels(replica_id, "mid_answer").inc()
        self._parts.fleet.failed(replica_id)
        self._parts.geography.lost(work.journey)
        self._parts.hurry()

    async def _start(self, status: int, headers: Headers) -> None:
        self._started = True
        await self._send({"type": "http.response.start", "status": status, "headers": passed_back(headers)})

    async def _send_part(self, part: bytes, *, more: bool) -> None:
        if part or not more:
            await self._send({"type": "http.response.body", "body": part, "more_body": more})

    async def give(self, body: bytes, headers: Headers) -> None:
        """Answers with JSON of the gateway's own making."""
        kind = ("content-type", "application/json")
        await self._start(200, (kind, ("content-length", str(len(body))), *headers))
        await self._send_part(body, more=False)

    async def tell(self, error: RequestError, scope: Scope, receive: Receive) -> None:
        """Answers with an error, also in the middle of a stream of events.

        In the middle of any other answer nothing can be said: without its last part, the server breaks the connection.
        """
        if not self._started:
            await error_response(error)(scope, receive, self._send)
        elif self._is_sse:
            await self._send_part(b"data: " + error_json(error) + b"\n\n" + _DONE, more=False)
