"""Replicas hold leases; watchers see who lives, whatever their clocks say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.errors import ConfigError
from sixfold.scaling.registry import (
    Division,
    LeaseLost,
    LeaseView,
    RegistryUnavailable,
    ReplicaRecord,
    Row,
    SqliteRegistry,
    lease,
)


def record(name: str = "a", *, incarnation: int = 1, url: str = "http://a") -> ReplicaRecord:
    return ReplicaRecord(replica_id=name, url=url, incarnation=incarnation)


@pytest.fixture
def registry(tmp_path: Path) -> SqliteRegistry:
    return SqliteRegistry(tmp_path / "replicas.db")


def test_what_is_published_is_read_by_another_process_of_the_machine(registry: SqliteRegistry, tmp_path: Path) -> None:
    registry.publish(record())
    registry.publish(record())
    registry.publish(record("b"))
    (first, second) = SqliteRegistry(tmp_path / "replicas.db").rows()
    assert (first, second) == (Row(record(), 2), Row(record("b"), 1))


def test_a_replaced_process_neither_renews_nor_withdraws_its_successor(registry: SqliteRegistry) -> None:
    registry.publish(record(incarnation=1))
    registry.publish(record(incarnation=2, url="http://new"))
    with pytest.raises(LeaseLost):
        registry.publish(record(incarnation=1))
    assert not registry.withdraw("a", 1)
    assert [row.record.url for row in registry.rows()] == ["http://new"]
    assert registry.withdraw("a", 2)
    assert registry.rows() == []


def test_a_row_is_removed_only_as_it_was_seen(registry: SqliteRegistry) -> None:
    registry.publish(record())
    registry.publish(record())  # renewed after somebody saw it with one renewal
    assert not registry.withdraw("a", 1, renewals=1)
    assert registry.withdraw("a", 1, renewals=2)


def test_a_lease_ends_when_its_count_stands_still_for_its_time() -> None:
    view = LeaseView(ttl_s=2.0)
    assert view.observe([Row(record(), 1)], 0.0)
    assert view.observe([Row(record(), 1)], 2.0)
    assert not view.observe([Row(record(), 1)], 2.1)
    assert view.observe([Row(record(), 2)], 2.2)
    assert view.observe([Row(record(incarnation=2), 1)], 4.1)
    assert not view.observe([], 4.2)


def test_rows_that_nobody_renews_are_told_to_whoever_clears_up() -> None:
    view = LeaseView(ttl_s=2.0)
    rows = [Row(record(), 1), Row(record("b"), 1)]
    view.observe(rows, 0.0)
    rows = [Row(record(), 1), Row(record("b"), 2)]
    view.observe(rows, 21.0)
    assert [row.record.replica_id for row in view.abandoned(rows, 21.0)] == ["a"]


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 3.0)), max_size=40))
def test_a_replica_that_renews_in_time_is_never_given_up_and_a_dead_one_always_is(
    steps: list[tuple[bool, float]],
) -> None:
    view = LeaseView(ttl_s=2.0)
    now_s, renewed_s, count = 0.0, 0.0, 1
    view.observe([Row(record(), count)], now_s)
    for renews, gap_s in steps:
        now_s += gap_s
        if renews:
            count, renewed_s = count + 1, now_s
        assert bool(view.observe([Row(record(), count)], now_s)) == (now_s - renewed_s <= 2.0)


async def test_a_lease_is_held_while_its_block_runs(registry: SqliteRegistry) -> None:
    async with lease(registry, record(), ttl_s=0.003):
        while (registry.rows()[0].renewals or 0) < 3:
            await asyncio.sleep(0)
    assert registry.rows() == []


async def test_a_replica_whose_id_was_taken_over_stops(registry: SqliteRegistry) -> None:
    with pytest.raises(LeaseLost):
        async with lease(registry, record(incarnation=1), ttl_s=0.003):
            registry.publish(record(incarnation=2))
            await asyncio.Event().wait()
    assert [row.record.incarnation for row in registry.rows()] == [2]


async def test_a_registry_that_is_away_for_a_while_costs_no_lease(tmp_path: Path) -> None:
    class Failing(SqliteRegistry):
        num_failures = 0

        def publish(self, record: ReplicaRecord) -> None:
            if self.rows() and self.num_failures < 3:
                self.num_failures += 1
                raise RegistryUnavailable("The disk is full.")
            super().publish(record)

    registry = Failing(tmp_path / "replicas.db")
    async with lease(registry, record(), ttl_s=0.003):
        while (registry.rows()[0].renewals or 0) < 3:
            await asyncio.sleep(0)
    assert registry.num_failures == 3
    assert registry.rows() == []


def test_how_requests_are_divided_holds_until_it_is_said_anew(registry: SqliteRegistry, tmp_path: Path) -> None:
    first = Division(service="chat", names=("chat", "talk"), old="1", new="2", share=0.05)
    second = Division(service="notes", names=("notes",), old="3", new="4", share=0.5)
    for division in (first, second, msgspec.structs.replace(first, share=0.25)):
        registry.divide(division.service, division)
    (one, other) = SqliteRegistry(tmp_path / "replicas.db").divisions()
    assert (one.share, other) == (0.25, second)
    registry.divide("chat", None)
    registry.divide("never", None)
    assert registry.divisions() == [second]
    assert registry.rows() == []


def test_a_file_that_is_no_registry_any_more_is_said_to_be_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "replicas.db"
    registry = SqliteRegistry(path)
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(RegistryUnavailable, match="can't be used"):
        registry.publish(record())


def test_a_file_that_cant_be_made_is_the_operators_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Name a file in a folder that exists"):
        SqliteRegistry(tmp_path / "missing" / "replicas.db")
