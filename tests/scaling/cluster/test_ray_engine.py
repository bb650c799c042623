"""Replicas on a real Ray cluster of two regions: placed by labels, drained, replaced, and moved when a region is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

from sixfold.scaling.cluster.document import DeployedService
from sixfold.scaling.cluster.engine import RayEngine
from sixfold.scaling.cluster.replica import ReplicaSettings
from sixfold.scaling.registry import ReplicaRecord
from sixfold.scaling.registry_settings import open_place, place_of
from sixfold.scaling.spec import PlacementSpec, ServiceSpec
from tests.plugins.llm.conftest import write_model
from tests.scaling.cluster.ray_cluster import LabelledCluster, labelled_cluster

pytestmark = pytest.mark.slow

_WAIT_S = 120.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LabelledCluster]:
    with labelled_cluster({"us": 2, "eu": 2}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ReplicaSettings:
    folder = tmp_path_factory.mktemp("service")
    source = write_model(folder / "model", "llama-long")
    options = {"dtype": "float32", "kv_cache_bytes": 4 << 20}
    models = {"tiny": {"source": f"file:{source}", "options": options}}
    config = json.dumps({"models": models, "server": {"host": "127.0.0.1", "port": 0}})
    return ReplicaSettings(config=config, registry=place_of(str(folder / "registry.db")), start_timeout_s=_WAIT_S)


def replicas(settings: ReplicaSettings) -> list[ReplicaRecord]:
    return [row.record for row in open_place(settings.registry, ttl_s=2.0).rows()]


def until_regions(settings: ReplicaSettings, regions: list[str]) -> list[ReplicaRecord]:
    """Waits until the replicas that answer are in these regions."""
    end_s = time.monotonic() + _WAIT_S
    while True:
        alive = [record for record in replicas(settings) if answers(record)]
        if sorted(record.region for record in alive) == regions:
            return alive
        assert time.monotonic() < end_s, f"{alive} are up, not {regions}"


def answers(record: ReplicaRecord) -> bool:
    try:
        return httpx.get(f"{record.url}/ready", timeout=5.0).is_success
    except httpx.TransportError:
        return False


def until_running(engine: RayEngine, count: int) -> None:
    end_s = time.monotonic() + _WAIT_S
    while (status := engine.status().get("tiny")) is None or (status.state, status.num_running) != ("RUNNING", count):
        assert time.monotonic() < end_s, status


def test_replicas_are_placed_by_label_drained_and_moved_when_their_region_is_lost(
    cluster: LabelledCluster, settings: ReplicaSettings
) -> None:
    engine = RayEngine(cluster.head_url)
    placement = PlacementSpec(labels={"region": "us"}, fallbacks=({"region": "eu"},), num_gpus=1)
    spec = ServiceSpec(model="tiny", placement=placement)
    engine.apply([DeployedService(spec=spec, replicas=settings, num_replicas=2)])
    first = until_regions(settings, ["us", "us"])
    until_running(engine, 2)

    body = {"model": "tiny", "prompt": "a", "max_tokens": 2000, "ignore_eos": True, "stream": True, "temperature": 0}
    with httpx.Client(timeout=_WAIT_S) as http:
        streams = [http.build_request("POST", f"{record.url}/v1/completions", json=body) for record in first]
        running = [http.send(request, stream=True).iter_lines() for request in streams]
        assert [next(lines) for lines in running]
        # One of both drains; which one is Ray's choice. The other is left alone.
        engine.apply([DeployedService(spec=spec, replicas=settings, num_replicas=1)])
        assert [[line for line in lines if line][-1] for lines in running] == ["data: [DONE]"] * 2
    (left,) = until_regions(settings, ["us"])
    assert left in first

    cluster.lose("us")
    (moved,) = until_regions(settings, ["eu"])
    answer = httpx.post(f"{moved.url}/v1/completions", json=body | {"stream": False, "max_tokens": 4}, timeout=_WAIT_S)
    assert answer.json()["usage"]["completion_tokens"] == 4
    engine.apply([])
    until_regions(settings, [])
    engine.close()
