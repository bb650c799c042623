from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from sixfold.core.errors import InvalidRequest, UsageError
from sixfold.core.jobs import Job, JobStore, Order
from sixfold.core.object_ids import store_of
from tests.core.faulty_sqlite import Faults
from tests.fakes import FakeClock

T = TypeVar("T")


async def test_a_job_survives_the_store(tmp_path: Path) -> None:
    clock = FakeClock()
    first = JobStore(tmp_path / "jobs.sqlite", clock=clock)
    job_id = await first.create("video", "ward", {"prompt": "x", "nested": [1, {"a": None}]}, "queued")
    await first.close()
    second = JobStore(tmp_path / "jobs.sqlite", clock=clock)
    job = await second.get(job_id, owner="ward")
    await second.close()
    assert job == Job(
        id=job_id,
        kind="video",
        owner="ward",
        state="queued",
        payload={"prompt": "x", "nested": [1, {"a": None}]},
        created_s=1000.0,
        updated_s=1000.0,
    )
    assert job_id.startswith("video_")
    assert (tmp_path / "jobs.sqlite").stat().st_mode & 0o077 == 0


async def test_a_job_can_be_promised_before_it_is_stored(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    job_id = store.new_id("resp")
    assert await store.get(job_id, owner="ward") is None
    assert await store.create("resp", "ward", {}, "completed", job_id=job_id) == job_id
    assert await store.get(job_id, owner="ward") is not None
    await store.close()


async def test_the_id_of_a_job_names_its_store(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite", store_id="abcdefgh")
    job_id = await store.create("resp", "ward", {}, "completed")
    assert (store_of(job_id), store_of(store.new_id("video"))) == ("abcdefgh", "abcdefgh")
    await store.close()


async def test_jobs_that_did_not_change_for_long_can_be_removed_by_kind(tmp_path: Path) -> None:
    clock = FakeClock()
    store = JobStore(tmp_path / "jobs.sqlite", clock=clock)
    old = await store.create("resp", "ward", {}, "completed")
    other = await store.create("video", "ward", {}, "queued")
    clock.advance(10.0)
    new = await store.create("resp", "ward", {}, "completed")
    assert await store.delete_unchanged_since("resp", clock() - 5.0) == 1
    assert await store.get(old, owner="ward") is None
    assert await store.get(other, owner="ward") is not None
    assert await store.get(new, owner="ward") is not None
    await store.close()


async def test_of_many_that_want_a_job_one_gets_it(tmp_path: Path) -> None:
    stores = [JobStore(tmp_path / "jobs.sqlite") for _ in range(3)]
    job_id = await stores[0].create("video", "ward", {}, "queued")
    tries = [store.transition(job_id, ("queued",), "running") for store in stores for _ in range(5)]
    taken = [job for job in await asyncio.gather(*tries) if job is not None]
    for store in stores:
        await store.close()
    assert [job.state for job in taken] == ["running"]


async def test_owners_see_their_own_jobs_only(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    job_id = await store.create("video", "ward", {}, "queued")
    assert await store.get(job_id, owner="other") is None
    assert await store.list(owner="other", kind="video", limit=10) == ()
    assert await store.transition(job_id, ("queued",), "cancelled", owner="other") is None
    assert not await store.delete(job_id, owner="other")
    with pytest.raises(InvalidRequest):
        await store.list(owner="other", kind="video", limit=10, after=job_id)
    assert await store.get(job_id, owner=None) is not None
    await store.close()


@pytest.mark.parametrize("content", ["later", "no database"])
async def test_a_file_that_cannot_be_used_is_the_operators_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "jobs.sqlite"
    if content == "later":
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
    else:
        path.write_text("this is no database, and long enough to be seen as none" * 10)
    store = JobStore(path)
    with pytest.raises(UsageError, match=r"jobs\.sqlite"):
        await store.open()
    await store.close()


class JobMachine(RuleBasedStateMachine):
    """The store against a dict, with restarts in between."""

    jobs = Bundle("jobs")
    owners = st.sampled_from(["a", "b"])
    kinds = st.sampled_from(["video", "image"])
    states = st.sampled_from(["queued", "running", "done"])
    payloads = st.dictionaries(st.text(max_size=3), st.integers() | st.none() | st.text(max_size=3), max_size=2)

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = TemporaryDirectory()
        self.clock = FakeClock()
        self.known: dict[str, Job] = {}

    @initialize()
    def open(self) -> None:
        self.store = JobStore(Path(self.folder.name) / "jobs.sqlite", clock=self.clock)

    def do(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self.runner.run(wait())

    @rule()
    def restart(self) -> None:
        self.do(self.store.close())
        self.open()

    @rule(target=jobs, kind=kinds, owner=owners, state=states, payload=payloads)
    def create(self, kind: str, owner: str, state: str, payload: dict[str, Any]) -> str:
        self.clock.advance(1.0)
        job_id = self.do(self.store.create(kind, owner, payload, state))
        now_s = self.clock()
        self.known[job_id] = Job(
            id=job_id, kind=kind, owner=owner, state=state, payload=payload, created_s=now_s, updated_s=now_s
        )
        return job_id

    @rule(job_id=jobs, payload=payloads)
    def update(self, job_id: str, payload: dict[str, Any]) -> None:
        self.clock.advance(1.0)
        assert self.do(self.store.update(job_id, payload=payload)) == (job_id in self.known)
        if job_id in self.known:
            self.known[job_id] = replace(self.known[job_id], payload=payload, updated_s=self.clock())

    @rule(
        job_id=jobs,
        sources=st.sets(states),
        target_state=states,
        owner=st.none() | owners,
        payload=st.none() | payloads,
    )
    def transition(
        self, job_id: str, sources: set[str], target_state: str, owner: str | None, payload: dict[str, Any] | None
    ) -> None:
        self.clock.advance(1.0)
        got = self.do(self.store.transition(job_id, sources, target_state, owner=owner, payload=payload))
        job = self.known.get(job_id)
        if job is None or job.state not in sources or owner not in (None, job.owner):
            assert got is None
            return
        given = job.payload if payload is None else payload
        self.known[job_id] = replace(job, state=target_state, payload=given, updated_s=self.clock())
        assert got == self.known[job_id]

    @rule(job_id=jobs, owner=st.none() | owners)
    def delete(self, job_id: str, owner: str | None) -> None:
        job = self.known.get(job_id)
        there = job is not None and owner in (None, job.owner)
        assert self.do(self.store.delete(job_id, owner=owner)) == there
        if there:
            del self.known[job_id]

    @rule(
        kind=kinds,
        owner=st.none() | owners,
        states=st.none() | st.sets(states),
        limit=st.integers(1, 3),
        order=st.sampled_from(["asc", "desc"]),
    )
    def page_through(self, kind: str, owner: str | None, states: set[str] | None, limit: int, order: Order) -> None:
        found: list[Job] = []
        after: str | None = None
        while page := self.do(
            self.store.list(owner=owner, kind=kind, limit=limit, after=after, order=order, states=states)
        ):
            assert len(page) <= limit
            found += page
            after = page[-1].id
        expected = [
            job
            for job in self.known.values()
            if job.kind == kind and owner in (None, job.owner) and (states is None or job.state in states)
        ]
        assert found == (expected if order == "asc" else expected[::-1])

    @invariant()
    def every_job_reads_as_it_was_written(self) -> None:
        for job_id, job in self.known.items():
            assert self.do(self.store.get(job_id, owner=job.owner)) == job

    def teardown(self) -> None:
        self.do(self.store.close())
        self.runner.close()
        self.folder.cleanup()


JobMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestJobMachine = JobMachine.TestCase


async def test_a_job_that_a_full_disk_refused_does_not_block_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch)
    store = JobStore(tmp_path / "jobs.sqlite3")
    await store.open()
    faults.num_commits = 1
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await store.create("video", "ward", {}, "queued")
    kept = await store.create("video", "ward", {}, "queued")
    assert [job.id for job in await store.list(owner=None, kind="video", limit=9)] == [kept]
    await store.close()


async def test_a_job_whose_caller_is_cancelled_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(monkeypatch)
    store = JobStore(tmp_path / "jobs.sqlite3")
    await store.open()
    faults.may_begin.clear()
    creates = [asyncio.create_task(store.create("video", "ward", {}, "queued")) for _ in range(2)]
    await asyncio.to_thread(faults.waits.wait, 20.0)
    for create in creates:
        create.cancel()
    await asyncio.gather(*creates, return_exceptions=True)
    faults.may_begin.set()
    assert len(await store.list(owner=None, kind="video", limit=9)) == 2
    await store.close()


async def test_jobs_are_found_by_their_last_change_by_a_number_in_them_and_are_counted(tmp_path: Path) -> None:
    clock = FakeClock()
    store = JobStore(tmp_path / "jobs.sqlite3", clock=clock)
    due = await store.create("file", "ward", {"expires_s": 50.0}, "batch")
    never = await store.create("file", "ward", {"expires_s": None}, "batch")
    clock.advance(10.0)
    later = await store.create("file", "ward", {"expires_s": 50.5}, "user_data")
    await store.create("file", "other", {}, "batch")
    await store.create("batch", "ward", {"expires_s": 1.0}, "open")

    async def found(**narrowed: Any) -> list[str]:
        jobs = await store.list(owner="ward", kind="file", limit=9, order="asc", **narrowed)
        return [job.id for job in jobs]

    assert await found(due=("expires_s", 50.0)) == [due]
    assert await found(due=("expires_s", 51.0)) == [due, later]
    assert await found(changed_by_s=clock() - 10.0) == [due, never]
    assert await store.count(owner="ward", kind="file", limit=9) == 3
    assert await store.count(owner="ward", kind="file", limit=2) == 2
    assert await store.count(owner="ward", kind="file", limit=9, states=("user_data", "x")) == 1
    await store.close()
