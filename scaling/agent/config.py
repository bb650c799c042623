"""What operators write about a site's agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sixfold.core.config import Seconds
from sixfold.scaling.hub.config import Cost, ListenSettings

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class AcceleratorSettings(BaseModel):
    """The accelerators of one class at the site."""

    model_config = _FROZEN

    units: Annotated[int, Field(ge=0)]
    """How many may be used."""

    price_per_hour: Cost = 1.0
    """What one costs an hour; the hub's own figure for the site comes first."""


class ReplicaSettings(BaseModel):
    """How a replica of a model is run as a process."""

    model_config = _FROZEN

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    """Program and arguments; ``{port}`` becomes a free port, ``{accelerator}`` the class."""

    health: str = "/health"
    """Path that answers 200 once the replica takes requests."""

    concurrency: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Requests that a replica has in flight at its target utilization; turns load into replicas."""

    stop_s: Seconds = 60.0
    """After SIGTERM a replica has this long for its running requests, then it is killed."""


class AgentSettings(ListenSettings):
    """A site's agent."""

    site_id: Annotated[str, Field(min_length=1)]
    """The site's name in the hub's configuration."""

    region: Annotated[str, Field(min_length=1)]
    """Where it is; must be the region that the hub's configuration says."""

    hubs: Annotated[tuple[str, ...], Field(min_length=1)]
    """Addresses of all candidates of the hub."""

    hub_token: str | None = None
    """The hub's token."""

    state: Path
    """File that keeps the last plan over restarts."""

    replica_host: str = "127.0.0.1"
    """Host under which gateways reach its replicas, which must listen there; name this machine for gateways on others."""

    accelerators: dict[str, AcceleratorSettings]
    """What the site has, by class."""

    models: dict[str, ReplicaSettings]
    """How each model's replicas are run."""

    report_every_s: Seconds = 2.0
    """Time between two reports to each candidate."""

    alone_after_s: Seconds = 30.0
    """So long after the last answer of any candidate the site scales by itself between the plan's bounds."""

    @model_validator(mode="after")
    def _addresses(self) -> Self:
        for url in self.hubs:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"hubs: {url!r} is not an address. Write http://host:port or https://host:port.")
        return self
