"""The registry over many machines, on a real etcd: what `Registry` promises, with several writers and a member lost."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sixfold.core.errors import ConfigError
from sixfold.scaling.etcd_registry import EtcdRegistry, open_registry
from sixfold.scaling.registry import LeaseLost, RegistryUnavailable, ReplicaRecord, SqliteRegistry
from tests.scaling.hub.etcd_cluster import EtcdCluster

_WAIT_S = 60.0
needs_etcd = pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd (Debian: etcd-server)")


def record(incarnation: int = 0, *, replica_id: str = "a") -> ReplicaRecord:
    return ReplicaRecord(replica_id=replica_id, url=f"http://{replica_id}:1", incarnation=incarnation, revision="r1")


def address(cluster: EtcdCluster, prefix: str) -> str:
    return f"etcd://{','.join(each.removeprefix('http://') for each in cluster.endpoints)}/{prefix}"


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(3)
    probe = EtcdRegistry(address(cluster, "probe"))
    end_s = time.monotonic() + _WAIT_S
    while True:
        try:
            probe.rows()
            break
        except RegistryUnavailable:
            assert time.monotonic() < end_s, "etcd did not start"
    yield cluster
    cluster.close()


@needs_etcd
def test_a_row_is_raised_by_its_holder_and_removed_by_the_same_incarnation_alone(etcd: EtcdCluster) -> None:
    registry = EtcdRegistry(address(etcd, "one"))
    for _ in range(3):
        registry.publish(record())
    assert [(row.record, row.renewals) for row in registry.rows()] == [(record(), 3)]
    assert not registry.withdraw("a", 1)
    assert not registry.withdraw("a", 0, renewals=2)
    assert registry.withdraw("a", 0, renewals=3)
    assert not registry.withdraw("a", 0)
    assert registry.rows() == []


@needs_etcd
def test_a_replica_that_was_replaced_cannot_come_back_over_its_successor(etcd: EtcdCluster) -> None:
    registry = EtcdRegistry(address(etcd, "two"))
    registry.publish(record(1))
    registry.publish(record(2))
    with pytest.raises(LeaseLost):
        registry.publish(record(1))
    assert [row.record.incarnation for row in registry.rows()] == [2]


@needs_etcd
def test_fleets_with_prefixes_of_their_own_do_not_see_each_other(etcd: EtcdCluster) -> None:
    one, other = EtcdRegistry(address(etcd, "ward")), EtcdRegistry(address(etcd, "ward-7"))
    one.publish(record())
    assert (len(one.rows()), len(other.rows())) == (1, 0)


@needs_etcd
def test_many_replicas_that_publish_at_once_all_have_their_rows(etcd: EtcdCluster) -> None:
    registry = EtcdRegistry(address(etcd, "many"))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(registry.publish, [record(replica_id=str(number)) for number in range(40)]))
    assert {row.record.replica_id for row in registry.rows()} == {str(number) for number in range(40)}


@needs_etcd
def test_with_a_member_lost_the_next_one_answers(etcd: EtcdCluster) -> None:
    registry = EtcdRegistry(address(etcd, "lost"))
    registry.publish(record())
    etcd.kill(0)
    end_s = time.monotonic() + _WAIT_S
    while True:  # where the leader is lost another is elected first
        try:
            registry.publish(record())
            break
        except RegistryUnavailable:
            assert time.monotonic() < end_s, "the other members do not answer"
    assert registry.rows()[0].renewals >= 2


def test_an_etcd_that_is_not_there_is_unavailable_and_no_other_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        registry = open_registry(f"etcd://127.0.0.1:{closed.getsockname()[1]}")
        for call in (lambda: registry.publish(record()), registry.rows, lambda: registry.withdraw("a", 0)):
            with pytest.raises(RegistryUnavailable, match="etcd does not answer"):
                call()


@pytest.mark.parametrize("wrong", ["etcd://", "etcd://host", "etcd:host:2379"])
def test_an_address_that_is_none_is_told_with_what_to_write(wrong: str) -> None:
    with pytest.raises(ConfigError, match="Write etcd://HOST:PORT"):
        open_registry(wrong)


def test_anything_else_is_a_file(tmp_path: object) -> None:
    assert isinstance(open_registry(f"{tmp_path}/replicas.db"), SqliteRegistry)
