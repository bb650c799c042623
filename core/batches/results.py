"""Writes the result files of a batch from its outcomes, so that writing them twice gives the same files once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from sixfold.core.batches.answers import UsageSum, outcome_without_answer
from sixfold.core.batches.ledger import Batches, Files
from sixfold.core.batches.lines import LineRef, read_line
from sixfold.core.batches.outcomes import Outcome, OutcomeStore
from sixfold.core.batches.records import CANCELLING, FINALIZING, BatchRecord, FileRecord, derived_id
from sixfold.core.jobs import Job
from sixfold.core.object_ids import store_of

_NUM_AT_ONCE = 1000
"""Lines that are marked as expired in one transaction."""


class ResultWriter:
    """Ends batches of which no line runs any more.

    Args:
        batches: Their records.
        files: Where the files go.
        outcomes: Of their lines.
        clock: Unix seconds.
    """

    def __init__(self, batches: Batches, files: Files, outcomes: OutcomeStore, clock: Callable[[], float]) -> None:
        self._batches = batches
        self._files = files
        self._outcomes = outcomes
        self._clock = clock

    async def mark_expired(self, job: Job, path: Path, lines: Sequence[LineRef]) -> None:
        """Gives the lines without an outcome one that says that the window is over.

        Args:
            job: The batch.
            path: Its input file.
            lines: All that are there.
        """
        done = await self._outcomes.lines(job.id)
        left = [ref for ref in lines if ref.number not in done]
        message = "This line was not answered before the batch's completion window was over."

        def outcomes(refs: list[LineRef]) -> list[Outcome]:
            return [
                outcome_without_answer(job.id, ref.number, read_line(path, ref), code="batch_expired", message=message)
                for ref in refs
            ]

        for first in range(0, len(left), _NUM_AT_ONCE):
            some = await asyncio.to_thread(outcomes, left[first : first + _NUM_AT_ONCE])
            await self._outcomes.add(job.id, some)

    async def write(self, job: Job) -> None:
        """Writes both files and ends the batch. Harmless to repeat, up to the last of its acts.

        Raises:
            NotReady: There is no room for the files.
        """
        usage = UsageSum()
        output_id = await self._write(job, "output", succeeded=True, on_line=usage.add)
        error_id = await self._write(job, "error", succeeded=False, on_line=lambda _line: None)
        num_completed, num_failed = await self._outcomes.counts(job.id)
        await self._batches.change(
            job.id,
            (FINALIZING, CANCELLING),
            BatchRecord.of(job).ends_as,
            edit=lambda record: msgspec.structs.replace(
                record,
                output_file_id=output_id,
                error_file_id=error_id,
                num_completed=num_completed,
                num_failed=num_failed,
                usage=usage.total,
            ),
        )
        await self._outcomes.delete(job.id)

    async def _write(self, job: Job, sort: str, *, succeeded: bool, on_line: Callable[[bytes], None]) -> str | None:
        # The id follows from the batch's: a server that ended, or had no room for the other file, left the same file.
        file_id = derived_id("file-", job.id, sort, store_id=store_of(job.id) or "")
        there = await self._files.peek(file_id, tenant=job.owner)
        if there is not None:
            await asyncio.to_thread(_read_lines, self._files.path(there), on_line)
            return file_id
        written = await self._outcomes.write(job.id, self._files.store, succeeded=succeeded, on_line=on_line)
        if written is None:
            return None
        stored_id, num_bytes = written
        record = FileRecord(
            filename=f"{job.id}_{sort}.jsonl",
            num_bytes=num_bytes,
            stored_id=stored_id,
            expires_s=self._clock() + BatchRecord.of(job).keep_files_s,
        )
        return (await self._files.add(record, tenant=job.owner, purpose="batch_output", file_id=file_id)).id


def _read_lines(path: Path, on_line: Callable[[bytes], None]) -> None:
    with path.open("rb") as file:
        for line in file:
            on_line(line)
