"""Where a gateway hears of the hub's plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from sixfold.core.config import Seconds

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PlanSettings(BaseModel):
    """The hub's plan, through the agents of the sites; docs/hub.md describes them."""

    model_config = _FROZEN

    agents: Annotated[tuple[Annotated[str, Field(pattern=r"^https?://[^/\s]+$")], ...], Field(min_length=1)]
    """Addresses of the agents of all sites, the gateway's own first: it is told the demand."""

    token: str | None = None
    """The agents' token."""

    state: Path
    """File that keeps the last plan and where servers are over restarts; a relative path starts at the folder of the
    configuration file."""

    every_s: Seconds = 1.0
    """Time between two exchanges with each agent."""

    timeout_s: Seconds = 1.0
    """How long an agent may take to answer."""

    refusal_s: Seconds = 2.0
    """How long a site that refused a model comes last for it."""
