"""What a gateway answers itself: is it alive, is it ready, its figures and decisions, and the models of all its servers."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from sixfold.core.decisions import DecisionLog, merged
from sixfold.core.errors import ModelNotFound, PermissionDenied
from sixfold.core.serving.drain import Drain
from sixfold.core.serving.keys import KeyRing, Principal
from sixfold.core.serving.metrics import CONTENT_TYPE
from sixfold.core.serving.settings import ServerSettings
from sixfold.scaling.gateway.fleet import Fleet, Replica
from sixfold.scaling.gateway.geography import Geography
from sixfold.scaling.gateway.metrics import GatewayMetrics


class OwnRoutes:
    """``/health``, ``/ready``, ``/metrics``, ``/decisions`` and ``/v1/models``.

    Args:
        settings: Of the HTTP side.
        keys: Who may ask.
        drain: Whether the gateway ends.
        fleet: The servers.
        geography: Whether requests may be served already.
        metrics: All figures.
        decisions: What the gateway changed of itself.
    """

    def __init__(
        self,
        settings: ServerSettings,
        keys: KeyRing,
        drain: Drain,
        fleet: Fleet,
        geography: Geography,
        metrics: GatewayMetrics,
        decisions: DecisionLog,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._drain = drain
        self._fleet = fleet
        self._geography = geography
        self._metrics = metrics
        self._decisions = decisions

    def answer(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Response | None:
        """The answer; None for what is passed on to a server.

        Raises:
            RequestError: The key is missing, wrong or may not see it, or the model is not there.
        """
        path: str = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            return None
        if path == "/health":
            return _json({"status": "ok"})
        if path == "/ready":
            return self._ready()
        key = headers.get(b"authorization")
        if path == "/metrics":
            if self._settings.protect_metrics:
                self._keys.authenticate(key)
            return Response(self._metrics.exposition(), headers={"content-type": CONTENT_TYPE})
        if path == "/decisions":
            return self._told(self._keys.authenticate(key))
        if path == "/v1/models" or path.startswith("/v1/models/"):
            model_id = path.removeprefix("/v1/models").removeprefix("/")
            return self._models(model_id, self._keys.authenticate(key))
        return None

    def _ready(self) -> Response:
        num_up = sum(replica.up and not replica.draining for replica in self._fleet)
        if self._drain.begun:
            status = "draining"
        elif self._geography.waits_for_plan:
            status = "no_plan"
        else:
            status = "ready" if num_up else "no_replica"
        replicas = {replica.record.replica_id: _state(replica) for replica in self._fleet}
        return _json({"status": status, "replicas": replicas}, 200 if status == "ready" else 503)

    def _told(self, principal: Principal) -> Response:
        if not principal.changes_models:
            raise PermissionDenied(
                "The key may not see decisions. The operator allows it by the key's 'changes_models'."
            )
        return _json(merged({"gateway": self._decisions.recent}))

    def _models(self, model_id: str, principal: Principal) -> Response:
        found: dict[str, msgspec.Raw] = {}
        for replica in self._fleet:
            if replica.up:
                for name, raw in replica.listing.items():
                    if principal.may_use(name):
                        found.setdefault(name, raw)
        if not model_id:
            return _json({"object": "list", "data": list(found.values())})
        if model_id not in found:
            raise ModelNotFound(
                f"The model {model_id[:200]!r} does not exist. GET /v1/models lists all.", param="model"
            )
        return _json(found[model_id])


def _state(replica: Replica) -> str:
    return "draining" if replica.draining else "up" if replica.up else "down"


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
