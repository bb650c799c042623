"""What Ray Serve runs: the application of one service. Imported in Ray's own processes only (the extra ``ray``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from sixfold.scaling.cluster.document import DEPLOYMENT, REGION_LABEL
from sixfold.scaling.cluster.replica import Replica, ReplicaSettings

if TYPE_CHECKING:
    from ray.serve import Application


class ServeReplica:
    """What Ray Serve calls of a replica; it makes one in each process that it starts.

    Args:
        settings: Of the service.
    """

    async def __init__(self, settings: ReplicaSettings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        region = ray.get_runtime_context().get_node_labels().get(REGION_LABEL, "")
        replica_id = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(replica_id, region, settings, node_ip=_node_ip())
        await self._replica.start()

    async def __call__(self) -> str:
        """The replica's address: the only thing that can be asked through Ray."""
        return self._replica.url

    async def check_health(self) -> None:
        """Raises if the replica must be replaced."""
        await self._replica.check()

    async def __del__(self) -> None:
        """Drains: Ray Serve awaits it before it ends the process."""
        await self._replica.stop()


def _node_ip() -> str:
    """The address by which the other nodes reach this one."""
    context: Any = ray.get_runtime_context()  # what is asked of it has no types
    nodes: list[dict[str, Any]] = ray.nodes()
    return str(next(node["NodeManagerAddress"] for node in nodes if node["NodeID"] == context.get_node_id()))


def build(args: dict[str, Any]) -> Application:
    """The application; how many replicas, where, and how long they drain is in the document that names this function.

    Args:
        args: `ReplicaSettings` as JSON has them.
    """
    return serve.deployment(name=DEPLOYMENT)(ServeReplica).bind(ReplicaSettings.model_validate(args))
