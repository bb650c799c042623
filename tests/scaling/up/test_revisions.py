"""What the cluster is told while a changed model is rolled out, and which requests the gateway sends where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sixfold.scaling.cluster.document import DeployedService
from sixfold.scaling.cluster.engine import RayEngine, ServiceStatus
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.registry import ReplicaRecord
from sixfold.scaling.registry_settings import place_of
from sixfold.scaling.up.revisions import Revisions
from sixfold.scaling.up.settings import Site, load_site

CANARY = {"kind": "canary", "steps": [0.25], "step_s": 10, "min_requests": 1}


class FakeEngine(RayEngine):
    """A cluster that runs at once what it is told, but for what it can't."""

    def __init__(self, *running: str) -> None:
        self.said: list[dict[str, int]] = []
        self.services: dict[str, DeployedService] = {}
        self.running = {name: ServiceStatus(state="RUNNING", message="", num_running=1) for name in running}

    def apply(self, services: Sequence[DeployedService]) -> None:
        self.services = {each.application: each for each in services}
        self.said.append({each.application: each.num_replicas for each in services})
        self.running = {
            name: self.running.get(name, ServiceStatus(state="RUNNING", message="", num_running=each.num_replicas))
            for name, each in self.services.items()
        }

    def status(self) -> Mapping[str, ServiceStatus]:
        return self.running

    def num_gpus(self) -> float:
        return 0.0


class Scene:
    """One model, its file, a cluster and a gateway; replicas are up when the test says so."""

    def __init__(self, folder: Path, rollout: Mapping[str, Any], *running: str) -> None:
        self.folder = folder
        self.rollout = rollout
        self.now_s = 0.0
        self.engine = FakeEngine(*running)
        site = self.site("first")
        self.gateway = Gateway(site.gateway(place_of(str(folder / "replicas.db")), replica_key=None))
        self.revisions = Revisions(
            *(self.engine, site, self.gateway), registry=place_of(str(folder / "replicas.db")), replica_key=None
        )
        self.tell()
        self.come_up()

    def site(self, source: str) -> Site:
        path = self.folder / "config.yaml"
        models = {"chat": {"source": f"file:{source}", "aliases": ["talk"]}}
        path.write_text(
            yaml.safe_dump({"models": models, "cluster": {"services": {"chat": {"rollout": self.rollout}}}})
        )
        return load_site(path, environ={"SIXFOLD_CACHE_DIR": "/cache"})

    def tell(self) -> None:
        self.revisions.run({"chat": 1})
        self.revisions.status()

    def come_up(self) -> None:
        """A replica of each service of the cluster is up."""
        records = [
            ReplicaRecord(replica_id=name, url=f"http://{name}", revision=each.replicas.revision)
            for name, each in self.engine.services.items()
        ]
        self.gateway.fleet.set_records(records)
        for replica in self.gateway.fleet:
            replica.up = True

    def change(self, source: str) -> None:
        self.revisions.change(self.site(source), self.now_s)
        self.tell()

    def roll(self, after_s: float) -> bool:
        self.now_s += after_s
        changed = self.revisions.roll({"chat": 1}, self.now_s)
        if changed:
            self.tell()
        return changed

    @property
    def share(self) -> float | None:
        shares = {name: splitter.split.share for name, splitter in self.gateway.shares.items()}
        assert set(shares) in (set(), {"chat", "talk"}), "all names of a model are one service"
        return shares.get("chat")

    @property
    def names(self) -> list[str]:
        return list(self.engine.services)


def test_a_rolling_change_replaces_replicas_in_place(tmp_path: Path) -> None:
    scene = Scene(tmp_path, {"kind": "rolling"})
    before = scene.engine.services["chat"].replicas
    scene.change("second")
    assert scene.names == ["chat"]
    assert scene.engine.services["chat"].replicas.revision != before.revision
    assert scene.share is None


def test_a_canary_runs_beside_the_old_one_takes_its_shares_and_stays_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path, CANARY)
    scene.change("second")
    old, new = scene.names
    assert old == "chat"
    assert scene.share == 0.0
    assert not scene.roll(5)
    scene.come_up()
    scene.roll(0)
    assert scene.share == 0.25
    scene.roll(100)
    assert scene.share == 1.0
    assert scene.roll(100)
    assert scene.names == [new]
    assert scene.share is None
    assert set(scene.revisions.status()) == {"chat"}


def test_a_canary_that_fails_requests_goes_again_and_is_not_tried_twice(tmp_path: Path) -> None:
    scene = Scene(tmp_path, CANARY)
    scene.change("second")
    scene.come_up()
    scene.roll(0)
    scene.gateway.fleet.failed(scene.names[1])
    assert scene.roll(1)
    assert scene.names == ["chat"]
    assert scene.share is None
    scene.change("second")
    assert scene.names == ["chat"]
    scene.change("third")
    assert len(scene.names) == 2


def test_a_canary_that_does_not_start_goes_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, CANARY)
    scene.change("second")
    new = scene.names[1]
    scene.engine.running[new] = ServiceStatus(state="DEPLOY_FAILED", message="no such file", num_running=0)
    scene.revisions.status()
    assert scene.roll(1)
    assert scene.names == ["chat"]


@pytest.mark.parametrize(("source", "num_left"), [("first", 1), ("third", 2)])
def test_a_change_during_a_rollout_ends_it_and_begins_that_of_the_newest(
    tmp_path: Path, source: str, num_left: int
) -> None:
    scene = Scene(tmp_path, CANARY)
    scene.change("second")
    scene.come_up()
    scene.roll(0)
    second = scene.names[1]
    scene.change(source)
    assert second not in scene.names
    assert len(scene.names) == num_left
    assert scene.share == (None if num_left == 1 else 0.0)


def test_a_cluster_that_is_joined_keeps_what_it_runs_under_whatever_revisions_name(tmp_path: Path) -> None:
    scene = Scene(tmp_path, CANARY, "chat-0123456789")
    assert scene.names == ["chat-0123456789"]


def test_models_come_and_go_with_the_file(tmp_path: Path) -> None:
    scene = Scene(tmp_path, CANARY)
    site = scene.site("first")
    entry = site.settings.models["chat"]
    more = site.settings.model_copy(update={"models": {"notes": entry.model_copy(update={"name": "notes"})}})
    scene.revisions.change(replace(site, settings=more), 1.0)
    scene.revisions.run({"notes": 2})
    assert scene.engine.said[-1] == {"notes": 2}


def test_a_trial_of_a_service_that_may_have_no_replica_has_one_of_each(tmp_path: Path) -> None:
    scene = Scene(tmp_path, {"kind": "canary"})
    scene.change("second")
    scene.revisions.run({"chat": 0})
    assert [each.num_replicas for each in scene.engine.services.values()] == [1, 1]


def test_a_service_that_may_have_no_replica_has_none_without_a_trial(tmp_path: Path) -> None:
    scene = Scene(tmp_path, {"kind": "canary"})
    scene.revisions.run({"chat": 0})
    assert [each.num_replicas for each in scene.engine.services.values()] == [0]


def test_how_requests_are_divided_is_told_for_as_long_as_a_rollout_lasts(tmp_path: Path) -> None:
    scene = Scene(tmp_path, CANARY)
    assert scene.revisions.divisions == {}
    scene.change("second")
    scene.come_up()
    for after_s, share in ((0, 0.25), (100, 1.0)):
        scene.roll(after_s)
        division = scene.revisions.divisions["chat"]
        assert (division.names, division.share) == (("chat", "talk"), share)
        assert [division.old, division.new] == [each.replicas.revision for each in scene.engine.services.values()]
    scene.roll(100)
    assert scene.revisions.divisions == {}
