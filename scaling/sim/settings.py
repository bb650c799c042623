"""What a person writes about a simulation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from sixfold.core.config import Seconds
from sixfold.core.validation import validate
from sixfold.core.yaml_document import read_document
from sixfold.scaling.autoscale.step_time import StepTime
from sixfold.scaling.gateway.settings import DisaggregationSettings
from sixfold.scaling.spec import Positive, RolesSpec, ScalingSpec, Share, Slo

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class StepTimeSettings(BaseModel):
    """Seconds of one step, as a line in what it does; ``bench/calibrate.py`` fits it to a running server."""

    model_config = _FROZEN

    base_s: Seconds
    """Of any step."""

    per_prefill_s: NotNegative
    """For each prompt token."""

    per_row_s: NotNegative = 0.0
    """For each sequence that decodes."""

    per_kv_s: NotNegative = 0.0
    """For each cached token that a decoding sequence reads."""

    per_prefill_kv_s: NotNegative = 0.0
    """For each token that a prompt token attends to: the part that grows with the square of a prompt's length."""

    @property
    def step_time(self) -> StepTime:
        """The same, for the simulation."""
        return StepTime(
            base_s=self.base_s,
            per_prefill_s=self.per_prefill_s,
            per_row_s=self.per_row_s,
            per_kv_s=self.per_kv_s,
            per_prefill_kv_s=self.per_prefill_kv_s,
        )


class ReplicaSettings(BaseModel):
    """What one replica is able to do."""

    model_config = _FROZEN

    step_time: StepTimeSettings
    """How fast it is."""

    max_step_tokens: Count = 2048
    """Most tokens of a step."""

    max_rows: Count = 256
    """Most sequences in the batch."""

    cache_tokens: Count = 1 << 20
    """Tokens whose keys and values it can hold."""

    block_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens of a block of the prefix cache (Mooncake's trace has blocks of 512); 0 for no prefix cache."""

    overhead_s: NotNegative = 0.0
    """Time of a request beside its steps."""

    num_gpus: Positive = 1.0
    """Accelerators of one replica."""


class DaySettings(BaseModel):
    """A day that is made of the trace by repeating and thinning it."""

    model_config = _FROZEN

    hours: Positive = 24.0
    """Its length."""

    low: Share = 0.2
    """Load at night, as a part of the load at the peak."""


class SpikeSettings(BaseModel):
    """A time in which many times the requests come."""

    model_config = _FROZEN

    at_s: NotNegative
    """When it starts."""

    duration_s: Seconds
    """How long it lasts."""

    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    """How many times the requests come."""


class TraceSettings(BaseModel):
    """Which requests come when."""

    model_config = _FROZEN

    path: Path
    """The file: CSV as Azure and Mooncake publish it, or that packed with gzip. Relative to the configuration."""

    limit: Count | None = None
    """Only the first so many requests; null for all."""

    speed: Positive = 1.0
    """How many times faster they arrive than in the file."""

    tenants: Count = 1
    """So many independent copies of the trace at once, each turned by a random time."""

    day: DaySettings | None = None
    """Makes a day of it; null leaves it as it is."""

    spike: SpikeSettings | None = None
    """Adds a spike."""


class LossSettings(BaseModel):
    """A site that is lost with all that runs there."""

    model_config = _FROZEN

    site: str
    """Which."""

    at_s: NotNegative
    """When."""

    duration_s: Seconds = 600.0
    """How long."""

    detect_s: NotNegative = 5.0
    """Time until gateways know."""


class SplitSettings(BaseModel):
    """Prompts that are computed by replicas of their own."""

    model_config = _FROZEN

    scaling: RolesSpec
    """How many of each role."""

    gateway: DisaggregationSettings
    """When a prompt is computed elsewhere, as in the gateway's file."""


class SimulationSettings(BaseModel):
    """One simulation."""

    model_config = _FROZEN

    trace: TraceSettings
    """Which requests come."""

    replica: ReplicaSettings
    """What serves them."""

    scaling: ScalingSpec
    """How many serve, at each site."""

    slo: Slo
    """What is promised; attainment is measured against it. Scaling follows it only where ``scaling.slo`` says so, too."""

    roles: SplitSettings | None = None
    """Where set, replicas have two roles, sized apart; of ``scaling`` its ``cold_start_s`` holds. With one site, which is never
    lost, and without fixed fleets beside."""

    routing: Literal[
        "round_robin",
        "least_loaded",
        "power_of_two",
        "prefix_hash",
        "kv_aware",
        "gateway_round_robin",
        "gateway_power_of_two",
        "gateway_hash",
        "gateway_prefix",
        "gateway_kv",
    ] = "power_of_two"
    """How requests find a replica of a site: by policies that see what the replicas have to do, or by the gateway's own
    (``gateway_``), which see what they have sent there."""

    sites: dict[str, Positive] = {"site": 1.0}
    """The sites, and what share of the clients is next to each."""

    losses: tuple[LossSettings, ...] = ()
    """Sites that are lost."""

    initial_replicas: Annotated[int, Field(ge=0)] | None = None
    """Ready replicas of each site at the start; null for ``scaling.min_replicas``."""

    patience_s: Seconds = 60.0
    """Clients give up when nothing of their request was computed for so long."""

    travel_s: NotNegative = 0.1
    """Time there and back between two sites."""

    replay_streams: bool = False
    """Whether streams that had begun are continued elsewhere when their site is lost."""

    static_fleets: bool = True
    """Whether fixed fleets are simulated, too, for comparison."""

    seed: int = 0
    """Of all that is drawn."""

    @model_validator(mode="after")
    def _losses_name_sites(self) -> Self:
        too_much = {
            "Name one of sites": len(self.sites) > 1,
            "Remove losses": bool(self.losses),
            "Set static_fleets to false": self.static_fleets,
        }
        next_steps = [step for step, is_due in too_much.items() if is_due]
        if self.roles is not None and next_steps:
            raise ValueError(
                f"roles: there may be one site, no losses and no fixed fleets beside them. {'. '.join(next_steps)}."
            )
        for loss in self.losses:
            if loss.site not in self.sites:
                raise ValueError(f"losses: there is no site {loss.site!r}. Sites: {', '.join(self.sites)}.")
        return self


def load_simulation(path: Path, environ: Mapping[str, str] | None = None) -> SimulationSettings:
    """Reads the YAML file of a simulation.

    Raises:
        ConfigError: With file, line and what to do.
    """
    document = read_document(path, os.environ if environ is None else environ)
    data: dict[str, JsonValue] = dict(document.root)
    settings = validate(SimulationSettings, data, where=document.where)
    trace = path.resolve().parent / settings.trace.path.expanduser()
    return settings.model_copy(update={"trace": settings.trace.model_copy(update={"path": trace})})
