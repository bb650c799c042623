"""Services on one Ray cluster, by the REST interface of its head: this process needs no Ray of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from sixfold.core.errors import SixfoldError
from sixfold.scaling.cluster.document import DEPLOYMENT, DeployedService, serve_document

_TIMEOUT_S = 30.0
_APPLICATIONS = "/api/serve/applications/"


class ClusterError(SixfoldError):
    """The head of the cluster can't be reached, or refuses what it was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One service as the cluster sees it.

    Attributes:
        state: Ray Serve's word: RUNNING, DEPLOYING, UNHEALTHY and so on.
        message: Why, where it does not run.
        num_running: Replicas that are up.
    """

    state: str
    message: str
    num_running: int


class RayEngine:
    """Makes one Ray cluster run services. Ray Serve places, checks, replaces and drains replicas; no request passes through it.

    Args:
        head_url: Of Ray's dashboard, such as ``http://127.0.0.1:8265``.
    """

    def __init__(self, head_url: str) -> None:
        self._http = httpx.Client(base_url=head_url, timeout=_TIMEOUT_S)

    def apply(self, services: Sequence[DeployedService]) -> None:
        """Says what shall run, all of it, and returns before it does.

        Raises:
            ClusterError: It is not taken.
        """
        self._ask("PUT", json=serve_document(services))

    def status(self) -> Mapping[str, ServiceStatus]:
        """Of each service, by its model's name.

        Raises:
            ClusterError: The head does not say.
        """
        applications: dict[str, Any] = self._ask("GET").json().get("applications", {})
        return {name: _status(application) for name, application in applications.items()}

    def close(self) -> None:
        """Closes connections; the services run on."""
        self._http.close()

    def _ask(self, method: str, **body: Any) -> httpx.Response:
        try:
            response = self._http.request(method, _APPLICATIONS, **body)
        except httpx.TransportError as error:
            raise ClusterError(
                f"Ray's head at {self._http.base_url} does not answer ({type(error).__name__}: {error}). "
                "Is it up, and its dashboard's port open to here?"
            ) from error
        if not response.is_success:
            raise ClusterError(f"Ray's head answers {response.status_code}: {response.text[:2000]}")
        return response


def _status(application: Mapping[str, Any]) -> ServiceStatus:
    deployment = application.get("deployments", {}).get(DEPLOYMENT, {})
    replicas = deployment.get("replicas", [])
    return ServiceStatus(
        state=application["status"],
        message=application.get("message") or deployment.get("message") or "",
        num_running=sum(replica["state"] == "RUNNING" for replica in replicas),
    )
