"""Services on one Ray cluster, by the REST interface of its head: this process needs no Ray of its own."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from sixfold.core.errors import SixfoldError
from sixfold.scaling.cluster.document import DEPLOYMENT, IMPORT_PATH, DeployedService, serve_document

_TIMEOUT_S = 30.0
_APPLICATIONS = "/api/serve/applications/"
_NODES = "/api/v0/nodes?detail=true"


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

    Applications of others on the cluster are left alone. Services of ours are one set: there can be one engine a cluster.

    Args:
        head_url: Of Ray's dashboard, such as ``http://127.0.0.1:8265``.
        transport: What carries the calls; httpx's own unless given.
    """

    def __init__(self, head_url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(base_url=head_url, timeout=_TIMEOUT_S, transport=transport, trust_env=False)
        # One after the other, so that what was said last holds: a thread may still be at it when its caller has given up.
        self._applying = threading.Lock()

    def apply(self, services: Sequence[DeployedService]) -> None:
        """Says what shall run, all of it, and returns before it does.

        Raises:
            ClusterError: It is not taken, or an application of somebody else has a service's name.
        """
        with self._applying:
            self._apply(services)

    def _apply(self, services: Sequence[DeployedService]) -> None:
        with self._understood():
            found = self._ask("GET", _APPLICATIONS).json()
            others = {name: each for name, each in found.get("applications", {}).items() if not _is_ours(each)}
        for service in services:
            if service.application in others:
                raise ClusterError(
                    f"The cluster runs an application {service.application!r} that is not of Sixfold. Rename the model, or "
                    "end that application."
                )
        # What was deployed from Python has no configuration here, and Ray Serve leaves it alone.
        kept = [config for each in others.values() if (config := each.get("deployed_app_config"))]
        proxies = found.get("proxy_location") if others else None
        self._ask("PUT", _APPLICATIONS, json=serve_document(services, others=kept, proxies=proxies))

    def status(self) -> Mapping[str, ServiceStatus]:
        """Of each service of ours, by its name (the model's, unless it has one of its own).

        Raises:
            ClusterError: The head does not say.
        """
        with self._understood():
            applications: dict[str, Any] = self._ask("GET", _APPLICATIONS).json().get("applications", {})
            return {name: _status(each) for name, each in applications.items() if _is_ours(each)}

    def num_gpus(self) -> float:
        """The GPUs of all living nodes.

        Raises:
            ClusterError: The head does not say.
        """
        with self._understood():
            nodes: list[dict[str, Any]] = self._ask("GET", _NODES).json()["data"]["result"]["result"]
            return float(sum(node["resources_total"].get("GPU", 0.0) for node in nodes if node["state"] == "ALIVE"))

    def close(self) -> None:
        """Closes connections; the services run on."""
        self._http.close()

    @contextmanager
    def _understood(self) -> Generator[None]:
        """Around the reading of an answer: a proxy's page, or another form than Ray's, is no defect of ours."""
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ClusterError(
                f"What {self._http.base_url} answers is not what Ray's head would say ({type(error).__name__}: {error}). "
                "Is it the address of Ray's dashboard, and is no proxy in front of it?"
            ) from error

    def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **body)
        except httpx.RequestError as error:
            raise ClusterError(
                f"Ray's head at {self._http.base_url} does not answer ({type(error).__name__}: {error}). "
                "Is it up, and its dashboard's port open to here?"
            ) from error
        if not response.is_success:
            raise ClusterError(f"Ray's head answers {response.status_code}: {response.text[:2000]}")
        return response


def _is_ours(application: Mapping[str, Any]) -> bool:
    config: Mapping[str, Any] = application.get("deployed_app_config") or {}
    return bool(config.get("import_path") == IMPORT_PATH)


def _status(application: Mapping[str, Any]) -> ServiceStatus:
    deployment = application.get("deployments", {}).get(DEPLOYMENT, {})
    replicas = deployment.get("replicas", [])
    return ServiceStatus(
        state=application["status"],
        message=application.get("message") or deployment.get("message") or "",
        num_running=sum(replica["state"] == "RUNNING" for replica in replicas),
    )
