"""What every store promises: the file of one machine, etcd over three sites, and the one that simulations use."""

import asyncio
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from sixfold.core.errors import ConfigError
from sixfold.scaling.hub.etcd_client import endpoints_of
from sixfold.scaling.hub.etcd_store import EtcdStore
from sixfold.scaling.hub.http_client import CallFailed, HttpClient
from sixfold.scaling.hub.leader import Leadership
from sixfold.scaling.hub.sqlite_store import SqliteStore
from sixfold.scaling.hub.store import ABSENT, Conflict, Fence, Fenced, Store, Stored, StoreUnavailable
from tests.core.faulty_sqlite import Faults
from tests.fakes import FakeClock
from tests.scaling.hub.etcd_cluster import EtcdCluster
from tests.scaling.hub.memory_store import MemoryStore

ETCD = [pytest.mark.slow, pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd (Debian: etcd-server)")]

WaitOut = Callable[[float], Awaitable[None]]


@pytest.fixture(params=["memory", "sqlite", pytest.param("etcd", marks=ETCD)])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Store, WaitOut]]:
    """A store, and how to let a lease of so many seconds end."""
    clock = FakeClock()

    async def advance(seconds: float) -> None:
        clock.advance(seconds)

    store: Store
    if request.param == "memory":
        store = MemoryStore(clock)
        yield store, advance
    elif request.param == "sqlite":
        store = SqliteStore(tmp_path / "hub.db", clock=clock)
        yield store, advance
    else:
        cluster = EtcdCluster(1)
        store = EtcdStore(endpoints_of(cluster.endpoints, timeout_s=5))
        try:
            await until_it_answers(store)
            yield store, asyncio.sleep
        finally:
            cluster.close()
    await store.close()


async def until_it_answers(store: Store) -> None:
    for _ in range(100):
        try:
            await store.get("x")
            return
        except StoreUnavailable:
            await asyncio.sleep(0.1)
    raise AssertionError("the store never answered")


async def test_a_value_is_read_as_it_was_written(stores: tuple[Store, WaitOut]) -> None:
    store, _ = stores
    assert await store.get("plan") is None
    value = bytes(range(256))
    version = await store.put("plan", value, expected=ABSENT)
    assert await store.get("plan") == Stored(value=value, version=version)


async def test_a_write_that_expects_another_version_is_refused(stores: tuple[Store, WaitOut]) -> None:
    store, _ = stores
    first = await store.put("plan", b"1", expected=ABSENT)
    second = await store.put("plan", b"2", expected=first)
    assert second > first
    for expected in (ABSENT, first):
        with pytest.raises(Conflict):
            await store.put("plan", b"3", expected=expected)
    assert await store.get("plan") == Stored(value=b"2", version=second)


async def test_a_fenced_write_is_refused_once_the_fence_has_another_owner(stores: tuple[Store, WaitOut]) -> None:
    store, _ = stores
    lease = await store.grant(5)
    mine = Fence(key="leader", version=await store.put("leader", b"a", expected=ABSENT, lease=lease))
    version = await store.put("plan", b"a", expected=ABSENT, fence=mine)
    await store.revoke(lease)
    with pytest.raises(Fenced):
        await store.put("plan", b"deposed", expected=version, fence=mine)
    theirs = Fence(key="leader", version=await store.put("leader", b"b", expected=ABSENT))
    with pytest.raises(Fenced):
        await store.put("plan", b"deposed", expected=version, fence=mine)
    assert await store.put("plan", b"b", expected=version, fence=theirs) > version


async def test_keys_of_a_lease_vanish_when_nobody_keeps_it_alive(stores: tuple[Store, WaitOut]) -> None:
    store, wait_out = stores
    lease = await store.grant(2)
    await store.put("leader", b"a", expected=ABSENT, lease=lease)
    await wait_out(0.7 * lease.ttl_s)
    assert await store.keep_alive(lease)
    await wait_out(0.7 * lease.ttl_s)
    assert await store.get("leader") is not None
    await wait_out(lease.ttl_s + 2)
    assert await store.get("leader") is None
    assert not await store.keep_alive(lease)
    await store.revoke(lease)
    with pytest.raises(Conflict):
        await store.put("leader", b"late", expected=ABSENT, lease=lease)


async def test_a_watch_gives_the_newest_value_and_nothing_in_silence(stores: tuple[Store, WaitOut]) -> None:
    store, _ = stores
    first = await store.put("plan", b"1", expected=ABSENT)
    assert await store.watch("plan", after=ABSENT, timeout_s=5) == Stored(value=b"1", version=first)
    assert await store.watch("plan", after=first, timeout_s=0.05) is None
    waiting = asyncio.create_task(store.watch("plan", after=first, timeout_s=10))
    await asyncio.sleep(0)
    await store.put("other", b"x", expected=ABSENT)
    second = await store.put("plan", b"2", expected=first)
    assert await waiting == Stored(value=b"2", version=second)


async def test_one_candidate_leads_and_another_follows_when_it_falls_silent(stores: tuple[Store, WaitOut]) -> None:
    store, wait_out = stores
    clock = FakeClock()
    a, b = (Leadership(store, name, ttl_s=2, clock=clock) for name in "ab")
    old = await a.step(eligible=True)
    assert old is not None and await b.step(eligible=True) is None
    assert await a.step(eligible=True) == old
    await wait_out(8)
    new = await b.step(eligible=True)
    assert new is not None and new.version > old.version
    with pytest.raises(Fenced):  # a still believes that it leads: its clock stood still
        assert a.fence == old
        await store.put("plan", b"deposed", expected=ABSENT, fence=a.fence)
    assert await a.step(eligible=True) is None
    await b.step(eligible=False)
    assert await a.step(eligible=True) is not None


async def test_a_leader_that_hears_nothing_of_the_store_stops_by_its_own_clock() -> None:
    clock = FakeClock()
    leadership = Leadership(MemoryStore(clock), "a", ttl_s=2, clock=clock)
    assert await leadership.step(eligible=True)
    clock.advance(1.9)
    assert leadership.fence is not None
    clock.advance(0.2)
    assert leadership.fence is None


async def test_a_wall_clock_that_jumps_costs_a_lead_and_never_lets_two_write(tmp_path: Path) -> None:
    wall, steady = FakeClock(), FakeClock()
    store = SqliteStore(tmp_path / "hub.db", clock=wall)
    a, b = (Leadership(store, name, ttl_s=2, clock=steady) for name in "ab")
    old = await a.step(eligible=True)
    assert old is not None
    wall.advance(3600)  # somebody sets the machine's clock: the living leader is deposed
    new = await b.step(eligible=True)
    assert new is not None
    with pytest.raises(Fenced):
        await store.put("plan", b"deposed", expected=ABSENT, fence=old)
    wall.advance(-7200)  # set back: a dead leader is replaced two hours later, and the one that leads goes on
    assert await a.step(eligible=True) is None
    version = await store.put("plan", b"b", expected=ABSENT, fence=new)
    assert await b.step(eligible=True) == new
    assert await store.get("plan") == Stored(value=b"b", version=version)
    await store.close()


async def test_two_processes_share_a_file(tmp_path: Path) -> None:
    """Both increase one number as often as they can; none of their writes is lost."""
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from sixfold.scaling.hub.sqlite_store import SqliteStore\n"
        "from sixfold.scaling.hub.store import Conflict\n"
        "async def main():\n"
        "    store, done = SqliteStore(Path(sys.argv[1])), 0\n"
        "    while done < 40:\n"
        "        stored = await store.get('n')\n"
        "        number, version = (int(stored.value), stored.version) if stored else (0, 0)\n"
        "        try:\n"
        "            await store.put('n', str(number + 1).encode(), expected=version)\n"
        "            done += 1\n"
        "        except Conflict:\n"
        "            pass\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "hub.db"
    command = (sys.executable, "-c", code, str(path))
    processes = [await asyncio.create_subprocess_exec(*command) for _ in range(2)]
    assert [await process.wait() for process in processes] == [0, 0]
    store = SqliteStore(path)
    stored = await store.get("n")
    assert stored is not None and stored.value == b"80"
    await store.close()


async def test_a_broken_file_is_unavailable_and_says_why(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "hub.db")
    with sqlite3.connect(tmp_path / "hub.db") as db:
        db.execute("DROP TABLE entries")
    db.close()
    with pytest.raises(StoreUnavailable, match="no such table"):
        await store.get("plan")
    await store.close()


@pytest.mark.parametrize("ends_transaction", [False, True], ids=["SQLite waits", "SQLite has rolled back"])
async def test_a_full_disk_is_unavailable_and_all_goes_on_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_transaction: bool
) -> None:
    disk = Faults(monkeypatch, "hub.db")
    store = SqliteStore(tmp_path / "hub.db")
    version = await store.put("plan", b"1", expected=ABSENT)
    disk.ends_transaction = ends_transaction
    for _ in range(2):
        disk.num_commits = 1
        with pytest.raises(StoreUnavailable, match="disk is full"):
            await store.put("plan", b"2", expected=version)
    assert await store.get("plan") == Stored(value=b"1", version=version)
    assert await store.put("plan", b"2", expected=version) > version
    await store.close()


async def test_a_leader_whose_disk_is_full_leads_no_longer_than_its_lease_and_again_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, clock = Faults(monkeypatch, "hub.db"), FakeClock()
    store = SqliteStore(tmp_path / "hub.db", clock=clock)
    leader = Leadership(store, "a", ttl_s=2, clock=clock)
    assert await leader.step(eligible=True) is not None
    disk.num_commits = 1000
    for fence_holds in (True, False):
        clock.advance(1.5)
        with pytest.raises(StoreUnavailable):
            await leader.step(eligible=True)
        assert (leader.fence is not None) == fence_holds
    disk.num_commits = 0
    assert await leader.step(eligible=True) is None, "its lease has ended"
    assert await leader.step(eligible=True) is not None
    await store.close()


def test_a_file_that_cannot_be_made_is_the_operators_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="Name a file in a folder that can be written"):
        SqliteStore(tmp_path / "file" / "hub.db")


async def test_etcd_out_of_reach_is_unavailable() -> None:
    store = EtcdStore(endpoints_of(["http://127.0.0.1:1", "http://127.0.0.1:2"]))
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await store.get("plan")


async def test_a_call_out_of_reach_says_that_nothing_was_sent() -> None:
    with pytest.raises(CallFailed) as failed:
        await HttpClient("http://127.0.0.1:1", timeout_s=1).call("GET", "/")
    assert not failed.value.sent


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd (Debian: etcd-server)")
async def test_three_members_survive_the_loss_of_any_one_and_stop_without_a_majority() -> None:
    cluster = EtcdCluster(3)
    store = EtcdStore(endpoints_of(cluster.endpoints))
    try:
        await until_it_answers(store)
        version = await store.put("plan", b"0", expected=ABSENT)
        for member in range(3):
            cluster.kill(member)
            await until_it_answers(store)
            stored = await store.get("plan")
            assert stored == Stored(value=str(member).encode(), version=version)
            version = await put_until_known(store, str(member + 1).encode(), version)
            cluster.start(member)
            await asyncio.sleep(1)
        cluster.kill(0)
        cluster.kill(1)
        with pytest.raises(StoreUnavailable):
            await store.get("plan")
        with pytest.raises(StoreUnavailable):
            await store.put("plan", b"minority", expected=version)
        cluster.start(0)
        await until_it_answers(store)
        stored = await store.get("plan")
        assert stored is not None and stored.value in (b"3", b"minority")
    finally:
        cluster.close()


async def put_until_known(store: Store, value: bytes, version: int) -> int:
    """Writes as leaders do: after an unknown outcome, read first."""
    for _ in range(50):
        try:
            return await store.put("plan", value, expected=version)
        except (StoreUnavailable, Conflict):
            await until_it_answers(store)
            stored = await store.get("plan")
            if stored is not None and stored.value == value:
                return stored.version
    raise AssertionError("never written")
