"""The ``cluster`` part of a server's configuration file: how its models become services of many replicas."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from sixfold.core.config import CLUSTER_PART, ModelEntry, Seconds, Settings, load_config
from sixfold.core.errors import ConfigError
from sixfold.core.validation import did_you_mean, validate
from sixfold.core.yaml_document import read_document
from sixfold.scaling.disagg.service import Role, RoleService, services_of
from sixfold.scaling.gateway.settings import (
    AdmissionSettings,
    DisaggregationSettings,
    GatewaySettings,
    HealthSettings,
    HedgeSettings,
    OutlierSettings,
    RetrySettings,
    RoutingSettings,
)
from sixfold.scaling.registry_settings import RegistryPlace, RegistrySettings, short_registry
from sixfold.scaling.spec import PlacementSpec, RoleSpec, RolesSpec, RolloutSpec, ScalingSpec, ServiceSpec

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

_HOLD_COLD_STARTS = 2.0
"""A request for a service without replicas is held for so many of its cold starts, unless ``hold_s`` is set."""


class ServicePart(BaseModel):
    """How one model is scaled and where its replicas run."""

    model_config = _FROZEN

    scaling: ScalingSpec = ScalingSpec(min_replicas=1)
    """How many replicas: docs/scaling.md. Unless it is given, one."""

    roles: RolesSpec | None = None
    """Where set, and in place of ``scaling``: prompts are computed by replicas of their own, and both kinds are scaled apart."""

    placement: PlacementSpec | None = None
    """On which machines; null: anywhere, with one GPU a rank where the cluster has GPUs and the model is not bound to ``cpu``."""

    rollout: RolloutSpec = RolloutSpec()
    """How a changed model replaces the one that runs; docs/scaling.md."""


class GatewayPart(BaseModel):
    """What may be set of the gateway, as in docs/gateway.md; where it listens and its keys are those of ``server``."""

    model_config = _FROZEN

    region: str | None = None
    """Where it is: replicas of this region are preferred."""

    resume_streams: bool = True
    """Whether streams of completions go on at another replica when theirs dies."""

    routing: RoutingSettings = RoutingSettings()
    """Which replica gets a request."""

    admission: AdmissionSettings = AdmissionSettings()
    """How much the gateway takes on; ``hold_s`` is two cold starts where a service may have no replica."""

    retries: RetrySettings = RetrySettings()
    """Second tries."""

    hedging: HedgeSettings = HedgeSettings()
    """A second replica when the first is late."""

    outliers: OutlierSettings = OutlierSettings()
    """When a replica is left alone."""

    disaggregation: DisaggregationSettings | None = None
    """When prompts are computed elsewhere; services with ``roles`` need it."""

    health: HealthSettings = HealthSettings()
    """How replicas are watched."""


class ClusterSettings(BaseModel):
    """The ``cluster`` part."""

    model_config = _FROZEN

    services: dict[str, ServicePart] = {}
    """By the model's name; a model without an entry has one replica."""

    gateway: GatewayPart = GatewayPart()
    """What stands before them."""

    registry: Annotated[RegistryPlace, BeforeValidator(short_registry)] | None = None
    """Where replicas publish themselves: ``etcd://HOST:PORT`` for a cluster of many machines (``etcds`` for https; users and
    certificates by ``etcd: {endpoints: ...}`` as in docs/gateway.md), or a file of this one; null: a file for as long as the
    command runs."""

    replica_key: str | None = None
    """The bearer key that replicas demand where ``server.api_keys`` are set; null: made at the start, and kept beside a
    registry's file."""

    start_timeout_s: Seconds = 1800.0
    """Longest start of a replica, fetching and loading included."""

    lease_s: Annotated[float, Field(ge=0.5, allow_inf_nan=False)] = 2.0
    """How long the gateway trusts a replica without a sign of life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """All that a configuration file says to ``sixfold up``.

    Attributes:
        settings: The models, and the face that clients see.
        cluster: How they are spread.
    """

    settings: Settings
    cluster: ClusterSettings

    def part(self, model: str) -> ServicePart:
        """How a model is scaled."""
        return self.cluster.services.get(model, ServicePart())

    @property
    def services(self) -> Mapping[str, RoleService]:
        """What runs, by its name in the cluster: each model, and a second service of those with roles."""
        return {
            each.name: each
            for model in self.settings.models
            for each in services_of(model, has_roles=self.part(model).roles is not None)
        }

    def scaling(self, model: str) -> ScalingSpec | RolesSpec:
        """By what a model's replicas are counted."""
        part = self.part(model)
        return part.roles or part.scaling

    def entry(self, service: str, *, listen: str = "127.0.0.1:0") -> ModelEntry:
        """A model as the servers of a service are told of it.

        Args:
            service: Its name.
            listen: Where those that compute prompts shall hand them out, as of the model's option ``kv_transfer.listen``.
        """
        which = self.services[service]
        entry, roles = self.settings.models[which.model], self.part(which.model).roles
        if roles is None:
            return entry
        transfer = which.transfer(listen=listen, peers=roles.peers)
        options = {**transfer, **entry.options, **_of(which.role, roles).options}
        return entry.model_copy(update={"options": options})

    def service(self, name: str, *, has_gpus: bool) -> ServiceSpec:
        """A service as the cluster runs it.

        Args:
            name: Of the service.
            has_gpus: Whether the cluster has any; without, a replica that nobody gave a placement asks for none.
        """
        model = self.services[name].model
        part, entry = self.part(model), self.settings.models[model]
        placement = part.placement or PlacementSpec(num_gpus=num_gpus(entry) if has_gpus else 0.0)
        return ServiceSpec(model=model, scaling=part.scaling, placement=placement, rollout=part.rollout)

    def gateway(self, registry: RegistryPlace, *, replica_key: str | None) -> GatewaySettings:
        """The settings of the gateway.

        Args:
            registry: Where replicas publish themselves.
            replica_key: What they demand; None where clients need no key, either.
        """
        part = self.cluster.gateway
        admission = part.admission
        may_be_gone = [
            spec
            for name in self.settings.models
            if isinstance(spec := self.scaling(name), ScalingSpec) and spec.min_replicas == 0
        ]
        if may_be_gone and "hold_s" not in admission.model_fields_set:
            hold_s = _HOLD_COLD_STARTS * max(spec.cold_start_s for spec in may_be_gone)
            admission = admission.model_copy(update={"hold_s": hold_s})
        chosen = {name: getattr(part, name) for name in GatewayPart.model_fields}
        return GatewaySettings.model_validate(
            {
                **chosen,
                "admission": admission,
                "registry": RegistrySettings(path=registry.path, etcd=registry.etcd, ttl_s=self.cluster.lease_s),
                "server": self.settings.server,
                "replica_key": replica_key,
            }
        )


def num_gpus(entry: ModelEntry) -> float:
    """The GPUs that a server of this model needs: one for each process that holds it; ``parallel: auto`` counts as one."""
    if entry.device == "cpu":
        return 0.0
    ranks = 1 if entry.parallel is None or entry.parallel == "auto" else entry.parallel.num_ranks
    return float(entry.replicas * ranks)


def load_site(
    path: Path,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, JsonValue] = MappingProxyType({}),
) -> Site:
    """Reads a configuration file of ``sixfold serve`` with its ``cluster`` part, if it has one.

    Args:
        path: The file.
        environ: Environment variables; those of the process unless given.
        flags: Fields of ``server`` from the command line; a None is no flag.

    Raises:
        ConfigError: With file, line and what to do.
    """
    environ = os.environ if environ is None else environ
    settings = load_config(path, environ=environ, flags=flags)
    document = read_document(path, environ)
    written = document.root.get(CLUSTER_PART)
    if written is not None and not isinstance(written, dict):
        raise ConfigError(f"{document.where((CLUSTER_PART,))}: {CLUSTER_PART}: must be a mapping of keys to values.")
    cluster = validate(ClusterSettings, written or {}, prefix=(CLUSTER_PART,), where=document.where)
    for name in cluster.services:
        place = f"{document.where((CLUSTER_PART, 'services', name))}: {CLUSTER_PART}.services.{name}"
        if name not in settings.models:
            raise ConfigError(f"{place}: there is no such model. {did_you_mean(name, settings.models)}")
        if cluster.services[name].scaling.slo is not None:
            raise ConfigError(
                f"{place}.scaling.slo: the agent of 'sixfold up' is told no times of requests. Remove it, or set target_drain_s."
            )
        check_roles(cluster, name, settings.models, place)
    if settings.server.data_dir is not None:
        raise ConfigError(
            f"{document.where(('server', 'data_dir'))}: server.data_dir: replicas come and go and none keeps a folder. Remove it."
        )
    if "telemetry" in document.root:
        raise ConfigError(
            f"{document.where(('telemetry',))}: telemetry: 'sixfold up' and manifests send no traces yet. Remove it; "
            "'sixfold serve' and 'sixfold gateway' do."
        )
    if cluster.registry is not None and cluster.registry.path is not None:
        registry = (path.resolve().parent / cluster.registry.path.expanduser()).resolve()
        cluster = cluster.model_copy(update={"registry": RegistryPlace(path=registry)})
    return Site(settings=settings, cluster=cluster)


def check_roles(cluster: ClusterSettings, name: str, models: Collection[str], place: str) -> None:
    """Refuses roles that the rest of the configuration does not bear.

    Args:
        cluster: All of the part.
        name: The service's.
        models: Names of all models.
        place: Where the service is written, for the message.

    Raises:
        ConfigError: With what to do.
    """
    part = cluster.services[name]
    if part.roles is None:
        return
    if "scaling" in part.model_fields_set:
        raise ConfigError(f"{place}: roles says how many replicas there are, and so does scaling. Remove one of both.")
    if part.rollout.kind != "rolling":
        raise ConfigError(
            f"{place}.rollout.kind: with roles replicas can only be replaced one after the other. Remove it, or write rolling."
        )
    if cluster.gateway.disaggregation is None:
        raise ConfigError(
            f"{place}.roles: the gateway must know what a token's keys and values weigh. Set cluster.gateway.disaggregation."
        )
    if part.roles.peers is None and cluster.registry is not None and cluster.registry.etcd is not None:
        raise ConfigError(
            f"{place}.roles.peers: replicas run on many machines. List the hosts of those that may compute prompts."
        )
    taken = [each.name for each in services_of(name, has_roles=True) if each.name != name and each.name in models]
    if taken:
        raise ConfigError(
            f"{place}.roles: its second service would be named {taken[0]!r}, as a model is. Rename the model."
        )


def _of(role: Role, roles: RolesSpec) -> RoleSpec:
    return roles.prefill if role == "prefill" else roles.decode
