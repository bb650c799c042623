"""One line of a batch on its way to an outcome: its turn, its tries, its commit."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

from sixfold.core.batches.answers import outcome_of, request_id_of
from sixfold.core.batches.idle_gate import IdleGate
from sixfold.core.batches.ledger import Files
from sixfold.core.batches.lines import LineRef, model_of, read_line
from sixfold.core.batches.outcomes import Outcome, OutcomeStore
from sixfold.core.batches.records import BatchRecord
from sixfold.core.jobs import Job
from sixfold.core.serving.inner_calls import InnerAnswer, InnerCalls
from sixfold.core.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]

_MAX_TRIES = 3
"""Of a line whose worker died, whose time was over or whose answer was cut: it may be the line's own fault."""
_COUNTED = frozenset(("worker_died", "deadline_exceeded", "answer_cut"))
_FINAL = frozenset(("model_failed",))
"""Not ready, and nothing that waiting would help."""
_MIN_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0
_FULL_PAUSE_S = 10.0


class RowRunner:
    """Runs lines. Used in the event loop; holds nothing of a line but its place at the gate.

    Args:
        inner: Answers them.
        gate: Says when.
        outcomes: Where answers go.
        files: Holds what lines name.
        settings: Of the server.
        sleep: ``asyncio.sleep``, or a fake.
    """

    def __init__(
        self,
        inner: InnerCalls,
        gate: IdleGate,
        outcomes: OutcomeStore,
        files: Files,
        settings: ServerSettings,
        sleep: Sleep,
    ) -> None:
        self._inner = inner
        self.gate = gate
        self._outcomes = outcomes
        self._files = files
        self._settings = settings
        self._sleep = sleep

    async def run(self, job: Job, path: Path, ref: LineRef, *, leave: Callable[[], None], place: str) -> None:
        """Asks until there is an outcome, and keeps that.

        Args:
            job: The batch.
            path: Its input file.
            ref: The line.
            leave: Called when the place at the gate that the caller took for it is free again.
            place: The model of that place.
        """
        holding = True
        try:
            line = await asyncio.to_thread(read_line, path, ref)
            num_tries = 0
            while True:
                if not holding:
                    await self.gate.enter(place)
                    holding = True
                answer = await self._ask(job, ref, bytes(line.body))
                num_tries += answer.error is not None and answer.error.code in _COUNTED
                pause_s = _pause_s(answer, num_tries)
                if pause_s is None:
                    # Still in its place: so no more answers are held in memory than lines may run.
                    await self._keep(job.id, outcome_of(job.id, ref.number, line, answer))
                    return
                self.gate.leave(place)
                holding = False
                await self._sleep(pause_s)
        finally:
            if holding:
                self.gate.leave(place)
            leave()

    async def model_of(self, path: Path, ref: LineRef) -> str:
        """The model whose place a line needs, by the registry's name."""
        return self._inner.registry_name(model_of(await asyncio.to_thread(read_line, path, ref)))

    async def wait_for_room(self) -> None:
        """Waits until the results of one more line will fit: they are kept twice for a moment, here and in their file."""
        limit = self._settings.batches.max_storage_bytes
        while self._files.store.num_bytes + 2 * self._outcomes.num_bytes >= limit:
            await self._sleep(_FULL_PAUSE_S)

    async def _keep(self, batch_id: str, outcome: Outcome) -> None:
        """Stores an outcome, however long the disk is full: the model has done its work."""
        while True:
            try:
                await self._outcomes.add(batch_id, [outcome])
                return
            except (OSError, sqlite3.Error) as failure:
                logger.warning("batch %s: line %d cannot be stored, tried again: %s", batch_id, outcome.line, failure)
                await self._sleep(_FULL_PAUSE_S)

    async def _ask(self, job: Job, ref: LineRef, body: bytes) -> InnerAnswer:
        return await self._inner.perform(
            BatchRecord.of(job).endpoint,
            body,
            tenant=job.owner,
            request_id=request_id_of(job.id, ref.number),
            open_file=lambda file_id, max_bytes: self._files.upload(file_id, tenant=job.owner, max_bytes=max_bytes),
        )


def _pause_s(answer: InnerAnswer, num_tries: int) -> float | None:
    """How long to wait before the line is tried again; None where the answer is the outcome."""
    error = answer.error
    if error is None or error.code in _FINAL or num_tries >= _MAX_TRIES:
        return None
    if not error.retryable and error.code not in _COUNTED:
        return None
    return min(_MAX_PAUSE_S, max(_MIN_PAUSE_S, error.retry_after_s or 0.0))
