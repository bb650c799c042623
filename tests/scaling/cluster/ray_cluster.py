"""A Ray cluster of several labelled nodes on this machine, whose nodes can be lost with everything on them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

# All others give themselves up when the head's memory is gone for a minute, and every replica with them. Only the environment
# changes that: by the time that a node has the system's configuration, it has made up its mind.
os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "600"

import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

_JOIN_TIMEOUT_S = 120.0

# A lost node is found out in seconds, not in half a minute.
_SYSTEM = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class LabelledCluster:
    """One head without room for replicas, and one node a region. Owned by `labelled_cluster`."""

    def __init__(self, regions: Mapping[str, int], gcs_folder: Path | None) -> None:
        # Ray's embedded database, alpha in 2.60: what the head knows outlives the process that knew it.
        kept = {"gcs_storage": "rocksdb", "gcs_storage_path": str(gcs_folder)} if gcs_folder is not None else {}
        self._cluster: Any = Cluster(  # what of it is used here has no types
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "num_gpus": 0,
                "labels": {"region": "hub"},
                "include_dashboard": True,
                "_system_config": {**_SYSTEM, **kept},
            },
        )
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        ray.init(address=self._cluster.address, log_to_driver=False)
        for region, num_gpus in regions.items():
            self.add(region, num_gpus)
            self._wait_for(region)  # two that start at once on one machine choose the same ports

    @property
    def head_url(self) -> str:
        """Of Ray's dashboard."""
        return f"http://{self._cluster.webui_url}"

    def add(self, region: str, num_gpus: int) -> None:
        """Begins a node with room for so many replicas (its GPUs are counted, and not there)."""
        self._nodes[region] = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
                *("--address", self._cluster.address, "--num-cpus", "2", "--num-gpus", str(num_gpus)),
                *("--labels", f"region={region}"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _wait_for(self, region: str) -> None:
        end_s = time.monotonic() + _JOIN_TIMEOUT_S
        while not any(node["Alive"] and node["Labels"].get("region") == region for node in ray.nodes()):
            assert self._nodes[region].poll() is None, f"the node {region} did not start"
            assert time.monotonic() < end_s, f"the node {region} did not join the cluster"
            time.sleep(0.1)

    def lose(self, region: str) -> None:
        """Ends a node and every process on it at once, as the loss of its site does."""
        node = self._nodes.pop(region)
        for pid in [*_descendants(node.pid), node.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()

    def lose_controller(self) -> None:
        """Ends Ray Serve's controller at once."""
        found: Any = [("class_name", "=", "ServeController"), ("state", "=", "ALIVE")]
        controllers: Any = list_actors(self._cluster.address, filters=found)
        (controller,) = controllers
        os.kill(controller.pid, signal.SIGKILL)

    def lose_gcs(self) -> None:
        """Ends the head's memory of the cluster at once: nothing can be placed, and nobody joins."""
        self._cluster.head_node.kill_gcs_server()

    def restart_gcs(self) -> None:
        """Starts it again, with what it had written down."""
        self._cluster.head_node.start_gcs_server()

    def close(self) -> None:
        """Ends it."""
        for region in tuple(self._nodes):
            self.lose(region)
        ray.shutdown()
        self._cluster.shutdown()


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found += [child, *_descendants(child)]
    return found


@contextlib.contextmanager
def labelled_cluster(regions: Mapping[str, int], *, gcs_folder: Path | None = None) -> Generator[LabelledCluster]:
    """A cluster with one node a region and so many places on each.

    Args:
        regions: The places of each.
        gcs_folder: Where the head writes down what it knows; None for nowhere.
    """
    # Replicas import what this process can import.
    paths = [str(Path.cwd()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = LabelledCluster(regions, gcs_folder)
    try:
        yield cluster
    finally:
        cluster.close()
