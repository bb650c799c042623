"""Which replica gets a request."""

from __future__ import annotations

import pytest

from sixfold.core.errors import NotReady, QueueFull, WorkerDied
from sixfold.core.messages import Request
from sixfold.core.serving.replica_choice import ReplicaChooser
from tests.core.serving.fake_replica import EchoInput, FakeReplica, FakeSnapshot


def ask() -> Request[EchoInput]:
    return Request(request_id="r", input=EchoInput(("a",)), arrived_s=0.0)


def replica(queued_units: int = 0, units_per_s: float = 10.0) -> FakeReplica:
    return FakeReplica(by_hand=True, snapshot=FakeSnapshot(queued_units=queued_units, units_per_s=units_per_s))


async def test_the_replica_that_is_done_soonest_gets_the_request() -> None:
    slow, fast = replica(100, units_per_s=10.0), replica(400, units_per_s=100.0)
    assert ReplicaChooser().submit([slow, fast], ask())[0] is fast


async def test_a_burst_between_two_snapshots_is_spread() -> None:
    replicas = [replica(), replica(), replica()]
    chooser = ReplicaChooser()
    for _ in range(9):
        chooser.submit(replicas, ask())
    assert [each.num_submitted for each in replicas] == [3, 3, 3]


async def test_a_replica_whose_requests_ended_is_preferred_again() -> None:
    replicas = [replica(), replica()]
    chooser = ReplicaChooser()
    for _ in range(2):
        chooser.submit(replicas, ask())
    chooser.done(replicas[1])
    assert chooser.submit(replicas, ask())[0] is replicas[1]


async def test_a_replica_without_a_measured_rate_counts_as_fast_as_the_others() -> None:
    new, old = replica(0, units_per_s=0.0), replica(50)
    assert ReplicaChooser().submit([old, new], ask())[0] is new
    busy = replica(500, units_per_s=0.0)
    assert ReplicaChooser().submit([busy, old], ask())[0] is old


async def test_a_rejection_sends_the_request_to_the_next_best() -> None:
    full, free = replica(), replica(10)
    full.rejection = QueueFull("full", retry_after_s=3.0)
    assert ReplicaChooser().submit([full, free], ask())[0] is free


async def test_the_soonest_retry_is_told_when_all_reject() -> None:
    first, second, third = replica(), replica(10), replica(20)
    first.rejection = QueueFull("full", retry_after_s=3.0)
    second.rejection = QueueFull("full", retry_after_s=2.0)
    third.rejection = NotReady("draining")
    with pytest.raises(QueueFull) as rejection:
        ReplicaChooser().submit([first, second, third], ask())
    assert rejection.value.retry_after_s == 2.0


async def test_no_replica_at_all_means_that_it_is_being_replaced() -> None:
    with pytest.raises(WorkerDied) as rejection:
        ReplicaChooser().submit([], ask(), back_in_s=7.0)
    assert rejection.value.retry_after_s == 7.0
