"""Parts of a real Ray cluster and its gateways are killed under load: no client sees it, and everything comes back."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

from sixfold.scaling.cluster.document import DeployedService
from sixfold.scaling.cluster.engine import ClusterError, RayEngine
from sixfold.scaling.cluster.replica import ReplicaSettings
from sixfold.scaling.registry import LeaseView
from sixfold.scaling.registry_settings import open_place, place_of
from sixfold.scaling.spec import PlacementSpec, ServiceSpec
from tests.plugins.llm.conftest import write_model
from tests.scaling.cluster.ray_cluster import LabelledCluster, labelled_cluster
from tests.servers import DemoServer, start_server, stop_server

pytestmark = pytest.mark.slow

_WAIT_S = 180.0
_POLL_S = 0.2
_STREAM = {
    "model": "tiny", "prompt": "a", "max_tokens": 40, "ignore_eos": True, "stream": True, "temperature": 0,
}  # fmt: skip


class Scene:
    """Two replicas of one model in two regions, and two gateways."""

    def __init__(self, cluster: LabelledCluster, folder: Path) -> None:
        self.cluster = cluster
        source = write_model(folder / "model", "llama-long")
        options = {"dtype": "float32", "kv_cache_bytes": 4 << 20}
        models = {"tiny": {"source": f"file:{source}", "options": options}}
        config = json.dumps({"models": models, "server": {"host": "127.0.0.1", "port": 0}})
        self.settings = ReplicaSettings(
            config=config, registry=place_of(str(folder / "registry.db")), start_timeout_s=_WAIT_S
        )
        self.engine = RayEngine(cluster.head_url)
        self.apply(2)
        self.until(lambda: len(self.replicas()) == 2)
        self.gateways = [start_server(gateway_config(folder / name), command="gateway") for name in ("one", "two")]
        self.text = stream_text(self.gateways[0])

    def apply(self, num_replicas: int) -> None:
        placement = PlacementSpec(labels={"region": "us"}, fallbacks=({"region": "eu"},), num_gpus=1)
        service = DeployedService(
            spec=ServiceSpec(model="tiny", placement=placement), replicas=self.settings, num_replicas=num_replicas
        )
        self.engine.apply([service])

    def replicas(self) -> dict[str, str]:
        """Region by address, of the replicas that answer."""
        rows = open_place(self.settings.registry, ttl_s=2.0).rows()
        alive = LeaseView(2.0).observe(rows, 0.0).values()
        return {each.url: each.region for each in alive if answers(each.url)}

    def until(self, holds: Callable[[], bool]) -> None:
        end_s = time.monotonic() + _WAIT_S
        while not holds():
            assert time.monotonic() < end_s, self.replicas()
            time.sleep(_POLL_S)  # a look costs a good part of a small machine

    def is_running(self, count: int) -> bool:
        """Whether the cluster says so, if it says anything."""
        try:
            status = self.engine.status().get("tiny")
        except ClusterError:
            return False
        return status is not None and (status.state, status.num_running) == ("RUNNING", count)

    @contextlib.contextmanager
    def load(self) -> Generator[None]:
        """Streams one after the other, by both gateways, while the block runs; each must be whole and have the known text."""
        stopping = threading.Event()
        failures: list[str] = []
        counts = [0, 0]

        def ask(index: int) -> None:
            while not stopping.is_set():
                try:
                    text = stream_text(self.gateways[index])
                    assert text == self.text, f"another text: {text[:80]}"
                    counts[index] += 1
                except (httpx.HTTPError, AssertionError) as error:
                    failures.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        self.until(lambda: min(counts) > 0)
        try:
            yield
            reached = tuple(counts)
            self.until(lambda: all(now > then for now, then in zip(counts, reached, strict=True)))
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
        assert failures == []


def gateway_config(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "gateway.yaml"
    document = {
        "registry": {"path": "../registry.db"},
        "server": {"port": 0},
        "resume_streams": True,
        "admission": {"hold_s": 30.0},
        "routing": {"policy": "power_of_two"},
    }
    path.write_text(json.dumps(document))
    return path


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5.0).is_success
    except httpx.TransportError:
        return False


def stream_text(gateway: DemoServer) -> str:
    parts: list[str] = []
    lines: list[str] = []
    with httpx.stream("POST", f"{gateway.url}/v1/completions", json=_STREAM, timeout=_WAIT_S) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                parts += [choice["text"] for choice in event["choices"]]
            lines += [line] if line else []
    assert lines[-1:] == ["data: [DONE]"], lines[-1:]
    return "".join(parts)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("faults")
    with labelled_cluster({"us": 2, "eu": 3}, gcs_folder=folder / "gcs") as cluster:
        found = Scene(cluster, folder)
        yield found
        for gateway in found.gateways:
            stop_server(gateway)
        found.engine.close()


def test_with_the_controller_killed_streams_go_on_and_its_successor_knows_the_replicas(scene: Scene) -> None:
    before = scene.replicas()
    with scene.load():
        scene.cluster.lose_controller()
        scene.until(lambda: scene.is_running(2))
    assert scene.replicas() == before
    scene.apply(3)
    scene.until(lambda: len(scene.replicas()) == 3)
    scene.apply(2)
    scene.until(lambda: len(scene.replicas()) == 2 and scene.is_running(2))


def test_with_the_heads_memory_killed_streams_go_on_and_what_it_wrote_down_comes_back(scene: Scene) -> None:
    before = scene.replicas()
    with scene.load():
        scene.cluster.lose_gcs()
        for gateway in scene.gateways:  # served by what is there, without it
            assert stream_text(gateway) == scene.text
        scene.cluster.restart_gcs()
        scene.until(lambda: scene.is_running(2))
    assert scene.replicas() == before
    scene.apply(3)
    scene.until(lambda: len(scene.replicas()) == 3)
    scene.apply(2)
    scene.until(lambda: len(scene.replicas()) == 2 and scene.is_running(2))


def test_with_a_gateway_killed_the_streams_of_the_other_go_on_and_it_takes_all(scene: Scene) -> None:
    one, two = scene.gateways
    with httpx.stream("POST", f"{two.url}/v1/completions", json=_STREAM, timeout=_WAIT_S) as response:
        lines = response.iter_lines()
        assert next(lines)
        one.process.send_signal(signal.SIGKILL)
        one.process.wait(_WAIT_S)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    with pytest.raises(httpx.TransportError):
        stream_text(one)
    assert stream_text(two) == scene.text
    stop_server(one)
    scene.gateways = [start_server(one.config, command="gateway"), two]


def test_with_a_node_killed_its_streams_go_on_elsewhere_and_its_replicas_come_up_there(scene: Scene) -> None:
    scene.apply(3)  # one more than there is room for at home
    scene.until(lambda: len(scene.replicas()) == 3)
    assert set(scene.replicas().values()) == {"us", "eu"}
    with scene.load():
        scene.cluster.lose("us")
        scene.until(lambda: list(scene.replicas().values()) == ["eu"] * 3)
