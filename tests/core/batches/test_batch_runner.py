"""Batches over restarts, faults and the end of their windows, with a clock and a model that the test holds."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.batches.idle_gate import IdleGate
from sixfold.core.batches.ledger import Batches, Files
from sixfold.core.batches.outcomes import Outcome, OutcomeStore
from sixfold.core.batches.records import COMPLETED, ENDED, VALIDATING, BatchRecord, FileRecord
from sixfold.core.batches.row import RowRunner
from sixfold.core.batches.runner import BatchRunner
from sixfold.core.errors import NotFound, NotReady, QueueFull, RequestError, StepFailed, WorkerDied
from sixfold.core.files import FileStore
from sixfold.core.jobs import Job, JobStore
from sixfold.core.serving.context import new_context
from sixfold.core.serving.error_responses import error_json
from sixfold.core.serving.inner_calls import InnerAnswer, InnerCalls
from sixfold.core.serving.settings import BatchSettings, ServerSettings
from tests.core.faulty_sqlite import Faults
from tests.core.serving.fake_replica import FakeDirectory

HOUR_S = 3600.0
TIMEOUT_S = 20.0
Answer = Callable[[str], Awaitable[object]]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


class FakeInner(InnerCalls):
    """Answers each line by a function of its word: an error, or what the answer says."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(new_context(ServerSettings(), FakeDirectory()))
        self._answer = answer

    async def perform(self, path: str, body: bytes, **_rest: Any) -> InnerAnswer:
        said = await self._answer(json.loads(body)["input"])
        if isinstance(said, RequestError):
            return InnerAnswer(status=said.status, content_type="application/json", body=error_json(said), error=said)
        return InnerAnswer(status=200, content_type="application/json", body=json.dumps(said).encode())


class StuckBatches(Batches):
    """Never gets to write that a batch is complete, as if the server had ended at that moment."""

    stuck = asyncio.Event()

    async def change(self, batch_id: str, from_states: Any, to_state: str, **rest: Any) -> Job | None:
        if to_state == COMPLETED:
            self.stuck.set()
            await asyncio.get_running_loop().create_future()
        return await super().change(batch_id, from_states, to_state, **rest)


class Server:
    """One life of a server's batches in a folder."""

    def __init__(
        self,
        folder: Path,
        answer: Answer,
        *,
        clock: Clock | None = None,
        bounds: BatchSettings | None = None,
        batches: type[Batches] = Batches,
        max_body_bytes: int = 1_000_000,
    ) -> None:
        self.clock = clock or Clock()
        settings = ServerSettings(batches=bounds or BatchSettings(max_rows=4), max_body_bytes=max_body_bytes)
        self.jobs = JobStore(folder / "batches.sqlite3", clock=self.clock)
        self.outcomes = OutcomeStore(folder / "outcomes.sqlite3")
        self.files = Files(self.jobs, FileStore(folder / "files", None, clock=self.clock), self.clock)
        self.batches = batches(self.jobs, self.clock)
        self.pauses_s: list[float] = []
        rows = RowRunner(
            FakeInner(answer),
            IdleGate(settings.batches, lambda _model: 0),
            self.outcomes,
            self.files,
            settings,
            self._sleep,
        )
        self.runner = BatchRunner(
            self.batches, self.files, self.outcomes, rows, settings, clock=self.clock, sleep=self._sleep_or_sweep
        )

    async def _sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        await asyncio.sleep(0)

    async def _sleep_or_sweep(self, seconds: float) -> None:
        if seconds == 5.0:  # between sweeps, which the test makes itself
            await asyncio.get_running_loop().create_future()
        await self._sleep(seconds)

    async def __aenter__(self) -> Server:
        await self.outcomes.open()
        await self.runner.open()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.runner.close()
        await self.outcomes.close()
        await self.jobs.close()

    async def sweep(self) -> None:
        self.runner.end_overdue()
        await self.runner.remove_expired()

    async def begin(self, words: list[str]) -> str:
        text = "".join(
            json.dumps(
                {
                    "custom_id": f"line-{number}",
                    "method": "POST",
                    "url": "/v1/echo",
                    "body": {"model": "parrot", "input": word},
                }
            )
            + "\n"
            for number, word in enumerate(words)
        )
        record = FileRecord(
            filename="lines.jsonl",
            num_bytes=len(text),
            stored_id=self.files.store.put(text.encode(), ".jsonl"),
            expires_s=self.clock() + 2 * HOUR_S,
        )
        file = await self.files.add(record, tenant="ward", purpose="batch")
        batch = BatchRecord(
            endpoint="/v1/echo",
            input_file_id=file.id,
            completion_window="1h",
            expires_s=self.clock() + HOUR_S,
            keep_files_s=HOUR_S,
        )
        job = await self.batches.create(batch, tenant="ward", state=VALIDATING)
        self.runner.start(job)
        return job.id

    async def ended(self, batch_id: str) -> BatchRecord:
        async with asyncio.timeout(TIMEOUT_S):
            while (job := await self.batches.get(batch_id, tenant="ward")).state not in ENDED:
                await asyncio.sleep(0.005)
        self.state = job.state
        return BatchRecord.of(job)

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        path = self.files.path(await self.files.get(file_id, tenant="ward"))
        return [json.loads(text) for text in path.read_text().splitlines()]


async def say(word: str) -> object:
    return {"text": word}


async def never(_word: str) -> object:
    return await asyncio.get_running_loop().create_future()


@settings(max_examples=12, deadline=None)
@given(num_lines=st.integers(1, 30), lives=st.lists(st.integers(0, 12), max_size=3))
def test_each_line_has_one_result_however_often_the_server_ends(
    tmp_path_factory: pytest.TempPathFactory, num_lines: int, lives: list[int]
) -> None:
    """Each life answers so many lines, then hangs and is ended wherever it is."""
    asyncio.run(_live_and_die(tmp_path_factory.mktemp("lives"), num_lines, lives))


async def _live_and_die(folder: Path, num_lines: int, lives: list[int]) -> None:
    words = [f"word {number}" for number in range(num_lines)]
    batch_id = ""
    for num_answers in lives:
        left, hung = [num_answers], asyncio.Event()

        async def some(word: str, left: list[int] = left, hung: asyncio.Event = hung) -> object:
            left[0] -= 1
            if left[0] < 0:
                hung.set()
                return await never(word)
            return {"text": word}

        async with Server(folder, some) as server:
            batch_id = batch_id or await server.begin(words)
            reaches_the_end = asyncio.ensure_future(server.ended(batch_id))
            hangs = asyncio.ensure_future(hung.wait())
            await asyncio.wait({reaches_the_end, hangs}, return_when=asyncio.FIRST_COMPLETED)
            for task in (reaches_the_end, hangs):
                task.cancel()
            await asyncio.gather(reaches_the_end, hangs, return_exceptions=True)
    async with Server(folder, say) as server:
        done = await server.ended(batch_id or await server.begin(words))
        lines = await server.lines(done.output_file_id)
    assert [each["custom_id"] for each in lines] == [f"line-{number}" for number in range(num_lines)]
    assert [each["response"]["body"]["text"] for each in lines] == words
    assert (done.num_completed, done.num_failed, done.error_file_id) == (num_lines, 0, None)


async def test_a_server_that_ends_while_it_writes_the_results_leaves_one_file(tmp_path: Path) -> None:
    StuckBatches.stuck = asyncio.Event()
    async with Server(tmp_path, say, batches=StuckBatches) as server:
        batch_id = await server.begin(["a", "b"])
        await StuckBatches.stuck.wait()
    async with Server(tmp_path, never) as server:
        done = await server.ended(batch_id)
        found = await server.files.page(tenant="ward", limit=10, after=None, order="asc", purpose="batch_output")
        assert [job.id for job in found] == [done.output_file_id]
        assert len(await server.lines(done.output_file_id)) == 2
        assert len(server.files.store.ids()) == 2, "the input and the output"
        assert await server.outcomes.batch_ids() == frozenset()


async def test_what_was_not_answered_within_the_window_is_told_as_expired(tmp_path: Path) -> None:
    async def some(word: str) -> object:
        return {"text": word} if word == "quick" else await never(word)

    async with Server(tmp_path, some) as server:
        batch_id = await server.begin(["quick", "slow", "quick"])
        async with asyncio.timeout(TIMEOUT_S):
            while await server.outcomes.counts(batch_id) != (2, 0):
                await asyncio.sleep(0.005)
        server.clock.now_s += HOUR_S - 1.0
        await server.sweep()
        assert (await server.batches.get(batch_id, tenant="ward")).state == "in_progress"
        server.clock.now_s += 1.0
        await server.sweep()
        done = await server.ended(batch_id)
        assert server.state == "expired"
        assert done.times_s["expired"] == server.clock.now_s
        assert [each["custom_id"] for each in await server.lines(done.output_file_id)] == ["line-0", "line-2"]
        (expired,) = await server.lines(done.error_file_id)
        assert (expired["custom_id"], expired["response"], expired["error"]["code"]) == (
            "line-1",
            None,
            "batch_expired",
        )
        assert (done.num_completed, done.num_failed) == (2, 1)


async def test_files_go_when_their_time_is_over_but_not_while_a_batch_reads_them(tmp_path: Path) -> None:
    async with Server(tmp_path, never) as server:
        batch_id = await server.begin(["slow"])
        source = BatchRecord.of(await server.batches.get(batch_id, tenant="ward")).input_file_id
        server.clock.now_s += 3 * HOUR_S  # past the file's time and past the window: the window ends first
        await server.sweep()
        done = await server.ended(batch_id)
        assert len(await server.lines(done.error_file_id)) == 1
        await server.sweep()
        with pytest.raises(NotFound):
            await server.files.get(source, tenant="ward")
        server.clock.now_s += HOUR_S
        await server.sweep()
        assert server.files.store.ids() == ()
        server.clock.now_s += 31 * 24 * HOUR_S
        await server.sweep()
        with pytest.raises(NotFound):
            await server.batches.get(batch_id, tenant="ward")


@pytest.mark.parametrize(
    ("errors", "pauses_s", "succeeds"),
    [
        ([QueueFull("full", retry_after_s=7.0), NotReady("loads", code="loading")], [7.0, 0.5], True),
        ([QueueFull("full", retry_after_s=900.0)] * 5, [30.0] * 5, True),
        ([WorkerDied("died"), WorkerDied("died")], [0.5, 0.5], True),
        ([WorkerDied("died")] * 3, [0.5, 0.5], False),
        ([NotReady("no", code="model_failed")], [], False),
        ([StepFailed("no")], [], False),
    ],
)
async def test_a_line_is_tried_again_where_that_may_help(
    tmp_path: Path, errors: list[RequestError], pauses_s: list[float], succeeds: bool
) -> None:
    left = list(errors)

    async def some(word: str) -> object:
        return left.pop(0) if left else {"text": word}

    async with Server(tmp_path, some) as server:
        done = await server.ended(await server.begin(["a"]))
        assert server.pauses_s == pauses_s
        assert (done.num_completed, done.num_failed) == ((1, 0) if succeeds else (0, 1))


async def test_no_more_lines_run_at_once_than_may(tmp_path: Path) -> None:
    running, most = [0], [0]

    async def some(word: str) -> object:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0.002)
        running[0] -= 1
        return {"text": word}

    async with Server(tmp_path, some, bounds=BatchSettings(max_rows=3)) as server:
        first, second = await server.begin(["a"] * 20), await server.begin(["b"] * 20)
        await server.ended(first)
        await server.ended(second)
    assert most[0] == 3


async def test_the_gate_keeps_no_name_of_a_model_of_which_no_line_runs() -> None:
    gate = IdleGate(BatchSettings(max_rows=4), lambda _model: 0)
    for number in range(100):
        await gate.enter(f"unknown-{number}")
        gate.leave(f"unknown-{number}")
    await gate.enter("known")
    assert gate.models == ("known",)
    assert gate.num_running == 1


async def test_a_disk_that_is_full_for_a_while_loses_no_answer_and_repeats_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, asked = Faults(monkeypatch, "outcomes.sqlite3"), list[str]()

    async def some(word: str) -> object:
        asked.append(word)
        if word == "b":
            faults.num_commits = 3
        return {"text": word}

    async with Server(tmp_path, some, bounds=BatchSettings(max_rows=1)) as server:
        done = await server.ended(await server.begin(["a", "b", "c"]))
        lines = await server.lines(done.output_file_id)
    assert (server.state, asked) == ("completed", ["a", "b", "c"])
    assert [each["custom_id"] for each in lines] == ["line-0", "line-1", "line-2"]
    assert server.pauses_s, "it was tried again after a pause"


async def test_results_that_do_not_fit_are_written_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, left, num_whole = os.fsync, [2], [0]

    def full_disk(descriptor: int) -> None:
        if f"{tmp_path}/files/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            num_whole[0] += 1
            if num_whole[0] > 2 and left[0]:  # after the input and the output: the error file
                left[0] -= 1
                raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    async def some(word: str) -> object:
        return StepFailed("no") if word == "bad" else {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}

    monkeypatch.setattr(os, "fsync", full_disk)
    async with Server(tmp_path, some) as server:
        done = await server.ended(await server.begin(["a", "bad"]))
        assert server.state == "completed"
        assert len(await server.lines(done.output_file_id)) == len(await server.lines(done.error_file_id)) == 1
        assert num_whole[0] == 2 + 3, "the output was written once, the error file three times"
        assert done.usage is not None
        assert done.usage.total_tokens == 7


async def test_a_defect_ends_a_batch_as_failed_with_what_was_answered(tmp_path: Path) -> None:
    async def some(word: str) -> object:
        if word == "defect":
            raise ZeroDivisionError
        return {"text": word}

    async with Server(tmp_path, some, bounds=BatchSettings(max_rows=1)) as server:
        done = await server.ended(await server.begin(["a", "defect", "b"]))
        assert (server.state, [error.code for error in done.errors]) == ("failed", ["internal_error"])
        assert [each["custom_id"] for each in await server.lines(done.output_file_id)] == ["line-0"]
        assert (done.num_completed, done.num_failed) == (1, 0)


async def test_a_server_with_lower_bounds_finishes_what_another_began(tmp_path: Path) -> None:
    async def some(word: str) -> object:
        return {"text": word} if word == "quick" else await never(word)

    async with Server(tmp_path, some) as server:
        batch_id = await server.begin(["quick", "slow" * 300, "quick"])
        async with asyncio.timeout(TIMEOUT_S):
            while await server.outcomes.counts(batch_id) != (2, 0):
                await asyncio.sleep(0.005)
    async with Server(tmp_path, say, bounds=BatchSettings(max_lines=1), max_body_bytes=1024) as server:
        done = await server.ended(batch_id)
        assert (server.state, done.errors, done.num_completed) == ("completed", (), 3)


async def test_a_batch_whose_input_is_lost_keeps_what_was_answered(tmp_path: Path) -> None:
    async def some(word: str) -> object:
        return {"text": word} if word == "quick" else await never(word)

    async with Server(tmp_path, some) as server:
        batch_id = await server.begin(["quick", "slow"])
        async with asyncio.timeout(TIMEOUT_S):
            while await server.outcomes.counts(batch_id) != (1, 0):
                await asyncio.sleep(0.005)
        for stored_id in server.files.store.ids():
            server.files.store.delete(stored_id)
    async with Server(tmp_path, say) as server:
        done = await server.ended(batch_id)
        assert (server.state, [error.code for error in done.errors]) == ("failed", ["file_not_found"])
        assert len(await server.lines(done.output_file_id)) == 1


async def test_lines_wait_while_the_results_have_no_room(tmp_path: Path) -> None:
    async with Server(tmp_path, say, bounds=BatchSettings(max_storage_bytes=1024)) as server:
        await server.outcomes.add("other", [Outcome(line=1, succeeded=True, data=b"x" * 512)])
        batch_id = await server.begin(["a"])
        async with asyncio.timeout(TIMEOUT_S):
            while not server.pauses_s:
                await asyncio.sleep(0.005)
        assert await server.outcomes.counts(batch_id) == (0, 0)
        await server.outcomes.delete("other")
        assert (await server.ended(batch_id)).num_completed == 1
