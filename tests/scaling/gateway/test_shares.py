"""Two revisions behind one gateway: each gets its share, and a bad one costs no request."""

from __future__ import annotations

from collections import Counter

from sixfold.scaling.registry import ReplicaRecord
from sixfold.scaling.rollout.split import Split, Splitter
from tests.scaling.gateway.scripted import JSON, NOTHING, Reply, RunningGateway, ScriptedReplica, fleet

BROKEN = Reply(status=500, headers={**JSON, "x-should-retry": "true"})


def divide(gateway: RunningGateway, old: ScriptedReplica, new: ScriptedReplica, share: float) -> None:
    """Tells the revisions of both replicas, as their leases would."""
    for replica, revision in ((old, "1"), (new, "2")):
        (found,) = [each for each in gateway.gateway.fleet if each.record.url == replica.url]
        found.record = ReplicaRecord(replica_id=found.record.replica_id, url=replica.url, revision=revision)
    gateway.gateway.fleet.set_records([each.record for each in gateway.gateway.fleet])
    for each in gateway.gateway.fleet:
        gateway.gateway.fleet.probed(
            each, {name: (entry, each.listing[name]) for name, entry in each.names.items()}, draining=False
        )
    gateway.gateway.shares["m"] = Splitter(Split(old="1", new="2", share=share))


async def test_each_revision_gets_its_share_and_what_became_of_it_is_counted() -> None:
    old, new = ScriptedReplica("old"), ScriptedReplica("new")
    async with fleet(old, new) as gateway:
        divide(gateway, old, new, 0.25)
        by = Counter([(await gateway.ask_json())["by"] for _ in range(20)])
        assert by == {"old": 15, "new": 5}
        assert gateway.gateway.fleet.tally("2").num_requests == 5
        assert gateway.gateway.fleet.tally("1").num_requests == 15


async def test_a_revision_that_fails_or_drops_every_request_costs_none() -> None:
    for bad in (BROKEN, NOTHING):
        old, new = ScriptedReplica("old"), ScriptedReplica("new", bad)
        async with fleet(old, new, outliers={"consecutive_5xx": 1000}) as gateway:
            divide(gateway, old, new, 0.5)
            assert [(await gateway.ask_json())["by"] for _ in range(10)] == ["old"] * 10
            tally = gateway.gateway.fleet.tally("2")
            assert tally.num_failed == tally.num_requests == 5


async def test_a_revision_without_a_share_gets_nothing() -> None:
    old, new = ScriptedReplica("old"), ScriptedReplica("new")
    async with fleet(old, new) as gateway:
        divide(gateway, old, new, 0.0)
        assert [(await gateway.ask_json())["by"] for _ in range(10)] == ["old"] * 10
