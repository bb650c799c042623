"""What a gateway answers itself: is it alive, is it ready, its figures and decisions, and the models of all its servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

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

_OF_ONE_MODEL = "/v1/models/"


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
        self._routes: Mapping[str, Callable[[bytes | None], Response]] = {
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._figures,
            "/decisions": self._told,
            "/v1/models": self._models,
        }

    def answer(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Response | None:
        """The answer; None for what is passed on to a server.

        Raises:
            RequestError: The key is missing, wrong or may not see it, or the model is not there.
        """
        path: str = scope["path"]
        if path == _OF_ONE_MODEL:
            path = "/v1/models"
        if scope["method"] not in ("GET", "HEAD"):
            return None
        key = headers.get(b"authorization")
        if path in self._routes:
            return self._routes[path](key)
        if path.startswith(_OF_ONE_MODEL):
            return self._model(path.removeprefix(_OF_ONE_MODEL), self._keys.authenticate(key))
        return None

    def routes(self) -> Iterator[tuple[str, Callable[..., Response]]]:
        """Path and what answers it, for the reference of endpoints."""
        yield from self._routes.items()
        yield _OF_ONE_MODEL + "{model_id}", self._model

    def _health(self, _key: bytes | None) -> Response:
        """200 as long as the process answers; needs no key."""
        return _json({"status": "ok"})

    def _ready(self, _key: bytes | None) -> Response:
        """200 while any server is up, else 503; lists the servers. Needs no key."""
        num_up = sum(replica.up and not replica.draining for replica in self._fleet)
        if self._drain.begun:
            status = "draining"
        elif self._geography.waits_for_plan:
            status = "no_plan"
        else:
            status = "ready" if num_up else "no_replica"
        replicas = {replica.record.replica_id: _state(replica) for replica in self._fleet}
        return _json({"status": status, "replicas": replicas}, 200 if status == "ready" else 503)

    def _figures(self, key: bytes | None) -> Response:
        """Prometheus text; needs a key with `protect_metrics` only."""
        if self._settings.protect_metrics:
            self._keys.authenticate(key)
        return Response(self._metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    def _told(self, key: bytes | None) -> Response:
        """What the gateway changed of itself lately, and why; needs a key with `changes_models`."""
        if not self._keys.authenticate(key).changes_models:
            raise PermissionDenied(
                "The key may not see decisions. The operator allows it by the key's 'changes_models'."
            )
        return _json(merged({"gateway": self._decisions.recent}))

    def _models(self, key: bytes | None) -> Response:
        """The models of all servers that the key may use."""
        return _json({"object": "list", "data": list(self._found(self._keys.authenticate(key)).values())})

    def _model(self, model_id: str, principal: Principal) -> Response:
        """One model, as its server describes it."""
        found = self._found(principal)
        if model_id not in found:
            raise ModelNotFound(
                f"The model {model_id[:200]!r} does not exist. GET /v1/models lists all.", param="model"
            )
        return _json(found[model_id])

    def _found(self, principal: Principal) -> dict[str, msgspec.Raw]:
        found: dict[str, msgspec.Raw] = {}
        for replica in self._fleet:
            if replica.up:
                for name, raw in replica.listing.items():
                    if principal.may_use(name):
                        found.setdefault(name, raw)
        return found


def _state(replica: Replica) -> str:
    return "draining" if replica.draining else "up" if replica.up else "down"


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
