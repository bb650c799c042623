"""What operators write about the hub: sites, models, the store, and how it is reached."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from sixfold.core.config import Seconds
from sixfold.core.errors import ConfigError
from sixfold.core.validation import validate
from sixfold.core.yaml_document import read_document
from sixfold.scaling.hub.etcd_client import EtcdSettings, etcd_settings
from sixfold.scaling.hub.fleet import FleetSettings, KnownSite
from sixfold.scaling.hub.model import Constraints, Latency, Weights

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

Share = Annotated[float, Field(ge=0, le=1)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]

SectionT = TypeVar("SectionT", bound=BaseModel)


class ListenSettings(BaseModel):
    """Where hub or agent listens."""

    model_config = _FROZEN

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: Annotated[int, Field(ge=1, le=65535)]
    """Port to listen on."""

    token: Annotated[str, Field(min_length=16)] | None = None
    """What callers send as a bearer token; needed on any address but a loopback one."""

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.token is None and not _is_loopback(self.host):
            raise ValueError(f"on {self.host} anybody could send reports. Set token, or host to 127.0.0.1.")
        return self


class StoreSettings(BaseModel):
    """Where plans are kept. One of the two."""

    model_config = _FROZEN

    sqlite: Path | None = None
    """A file, for candidates on one machine."""

    etcd: Annotated[EtcdSettings, BeforeValidator(etcd_settings)] | None = None
    """Addresses of etcd members, for candidates at three sites; or a mapping with `endpoints` and how they are reached."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.sqlite is None) == (self.etcd is None):
            raise ValueError("give either sqlite: PATH or etcd: [URL, ...].")
        return self


class SiteSettings(BaseModel):
    """One site."""

    model_config = _FROZEN

    region: str
    """What region locks name."""

    failure_domain: str = ""
    """Sites of one domain are taken to fail together; the site alone unless set."""

    prices: dict[str, Cost] = {}
    """What an accelerator costs an hour, by class."""

    latencies_s: dict[str, Cost] = {}
    """Latency that the site adds for clients of each origin, in seconds; 0 for those of its own name or region unless given."""


class ModelSettings(BaseModel):
    """What must hold for a model; see `sixfold.scaling.hub.model.Constraints`."""

    model_config = _FROZEN

    units: Annotated[dict[str, Annotated[int, Field(ge=1)]], Field(min_length=1)]
    """Accelerators that one replica takes, by class; it may run on any class named here."""

    regions: tuple[str, ...] = ()
    """Regions that its data may enter; empty allows all."""

    min_replicas: Count = 0
    """Fewest replicas, over all sites, where there is room."""

    max_replicas: Count = 1_000_000
    """Most replicas, over all sites, the room to scale without the hub included."""

    min_sites: Count = 0
    """It should run at so many sites."""

    survive_share: Share = 0.0
    """Share of its demand that should still be served when any one failure domain is lost."""

    min_site_share: Share = 0.0
    """Each site that runs it gets at least this share of the requests of every origin."""

    priority: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Weight of its unserved demand."""


class WeightSettings(BaseModel):
    """What is weighed against each other, in the currency of the prices, per hour; see `sixfold.scaling.hub.model.Weights`."""

    model_config = _FROZEN

    latency_per_s: Cost = Weights().latency_per_s
    """What a second of latency costs for the traffic of one replica."""

    unknown_latency_s: Cost = Weights().unknown_latency_s
    """Latency between an origin and a site elsewhere that names none."""

    move: Cost = Weights().move
    """What it costs to stop a replica that could stay."""

    unserved: Cost = Weights().unserved
    """What it costs to leave the demand of one replica unserved."""

    survival: Cost = Weights().survival
    """What each replica costs that is missing to survive the loss of a failure domain."""

    spread: Cost = Weights().spread
    """What each site costs that is missing to ``min_sites``."""

    max_stops: Count = Weights().max_stops
    """Most replicas that one plan stops although they could stay."""

    floor_share: Share = Weights().floor_share
    """A site alone goes down to this share of its planned replicas."""

    ceiling_share: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Weights().ceiling_share
    """A site alone goes up to this share of its planned replicas, where it has room."""


class HubSettings(ListenSettings):
    """One candidate of the hub; all but the first three keys are the same for every candidate."""

    hub_id: Annotated[str, Field(min_length=1)]
    """Its name, unique among the candidates."""

    store: StoreSettings
    """Where plans are kept."""

    sites: Annotated[dict[str, SiteSettings], Field(min_length=1)]
    """All sites that there may be, by name."""

    models: dict[str, ModelSettings]
    """All models, by name."""

    weights: WeightSettings = WeightSettings()
    """What is weighed."""

    lead_ttl_s: Seconds = 6.0
    """How long other candidates wait for a leader that says nothing."""

    plan_every_s: Seconds = 10.0
    """Time between two plans."""

    solve_s: Seconds = 5.0
    """Time of the solver for one plan."""

    silent_after_s: Seconds = 6.0
    """A site that said nothing for this long is left as it is."""

    lost_after_s: Seconds = 20.0
    """A site that said nothing for this long is counted out."""

    hold_s: Seconds = 120.0
    """A fall of demand counts only after this long."""

    min_heard_share: Share = 0.5
    """A candidate that hears fewer of the planned sites does not lead."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        regions = {site.region for site in self.sites.values()}
        for name, model in self.models.items():
            unknown = sorted(set(model.regions) - regions)
            if unknown:
                raise ValueError(
                    f"models.{name}.regions: no site is in {', '.join(unknown)}. Regions: {', '.join(sorted(regions))}."
                )
            if model.min_replicas > model.max_replicas:
                raise ValueError(
                    f"models.{name}: min_replicas is {model.min_replicas} and max_replicas {model.max_replicas}."
                )
        if self.lost_after_s <= self.silent_after_s:
            raise ValueError(
                f"lost_after_s is {self.lost_after_s}: it must be longer than silent_after_s, {self.silent_after_s}."
            )
        return self

    def fleet(self) -> FleetSettings:
        """The part that planning needs."""
        return FleetSettings(
            sites=tuple(
                KnownSite(site_id=name, region=site.region, failure_domain=site.failure_domain, prices=site.prices)
                for name, site in sorted(self.sites.items())
            ),
            models={name: Constraints(**model.model_dump()) for name, model in self.models.items()},
            latencies=tuple(
                Latency(origin=origin, site_id=name, latency_s=latency_s)
                for name, site in sorted(self.sites.items())
                for origin, latency_s in sorted(site.latencies_s.items())
            ),
            weights=Weights(**self.weights.model_dump()),
            silent_after_s=self.silent_after_s,
            lost_after_s=self.lost_after_s,
            hold_s=self.hold_s,
            min_heard_share=self.min_heard_share,
        )


def load_section(path: Path, section: str, kind: type[SectionT], environ: Mapping[str, str] = os.environ) -> SectionT:
    """One top-level part of a YAML file; the file may hold others.

    Raises:
        ConfigError: The file, the part or a key of it is wrong; with file and line.
    """
    document = read_document(path, environ)
    data: JsonValue = document.root.get(section)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: the key {section!r} must hold a mapping. See docs/hub.md.")
    return validate(kind, data, prefix=(section,), where=document.where)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
