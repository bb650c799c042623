"""What an operator writes about one service: how many replicas, where they may run, and what its clients are promised."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from sixfold.core.config import Seconds

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Slo(BaseModel):
    """What clients are promised, and how often it must hold."""

    model_config = _FROZEN

    ttft_s: Seconds | None = None
    """Longest time to the first token, segment or preview, in seconds."""

    e2e_s: Seconds | None = None
    """Longest time of a whole request, in seconds."""

    attainment: Share = 0.95
    """Share of the requests that must keep both times; 0.95 promises the 95th percentile."""

    @model_validator(mode="after")
    def _promises_something(self) -> Self:
        if self.ttft_s is None and self.e2e_s is None:
            raise ValueError("set ttft_s, e2e_s or both: an objective without a time promises nothing.")
        return self


class ForecastSpec(BaseModel):
    """How demand is foreseen. The forecast is a floor: it adds replicas early and never takes one away."""

    model_config = _FROZEN

    bucket_s: Seconds = 60.0
    """Demand is averaged over this many seconds before it is extrapolated."""

    season_s: Seconds | None = None
    """Length of a period that repeats, such as 86400 for days; null follows the trend alone."""


class ScalingSpec(BaseModel):
    """How one service's number of replicas follows its load."""

    model_config = _FROZEN

    min_replicas: Annotated[int, Field(ge=0)] = 0
    """Fewest replicas; 0 lets an unused service go, and its next request waits for a start."""

    max_replicas: Annotated[int, Field(ge=1)] = 1
    """Most replicas."""

    concurrency_target: Positive = 1.0
    """Requests that a replica can have in flight while it keeps its promises."""

    target_drain_s: Seconds | None = None
    """Seconds of admitted work (in tokens, latent tokens, audio frames alike) that may wait at a replica; null: not looked at."""

    target_cache_use: Share | None = None
    """Share of a replica's sequence memory (the key/value cache) that may be in use; null: not looked at."""

    target_utilization: Share = 0.7
    """Share of the targets above that is planned for; the rest absorbs what comes between two decisions."""

    window_s: Annotated[float, Field(ge=2, le=3600)] = 60.0
    """Load is averaged over this many seconds."""

    panic_window_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """A second, shorter average over this share of the window notices surges."""

    panic_threshold: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    """A surge to this multiple of what the ready replicas can bear is a panic: until a window after it, nothing shrinks."""

    scale_down_delay_s: Annotated[float, Field(ge=0, le=3600)] = 900.0
    """Replicas leave when fewer have sufficed for this long, and again after each such time."""

    max_scale_down_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Most of the superfluous replicas that leave at once, as a share; at least one does."""

    max_scale_up_rate: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 1000.0
    """Most replicas after one decision, as a multiple of the ready ones."""

    cold_start_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """Seconds from the decision to start a replica until it takes requests; the lead of the forecast."""

    slo: Slo | None = None
    """Where set, what a replica is given follows the measured times: less when they break the promise, more when far below."""

    forecast: ForecastSpec | None = None
    """Where set, demand is foreseen one cold start and one window ahead."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}. "
                "Raise max_replicas or lower min_replicas."
            )
        return self

    @property
    def panic_window_s(self) -> float:
        """The shorter window, in seconds."""
        return self.window_s * self.panic_window_share


class RoleSpec(BaseModel):
    """The replicas of one role."""

    model_config = _FROZEN

    min_replicas: Annotated[int, Field(ge=1)] = 1
    """Fewest; a role without any would leave the other one useless."""

    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """Most; null: what both roles together may have without the other's fewest."""

    options: dict[str, JsonValue] = {}
    """Options of the model that differ in this role; those of the entry hold beside them."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}. "
                "Raise max_replicas or lower min_replicas."
            )
        return self


class RolesSpec(BaseModel):
    """One model's replicas in two roles that scale apart: some compute prompts for the others, which write the answers."""

    model_config = _FROZEN

    max_replicas: Annotated[int, Field(ge=2)]
    """Most replicas of both roles together."""

    ttft_s: Seconds
    """Longest time that prompts shall wait to be computed, in seconds."""

    inter_token_s: Seconds
    """Longest time between two tokens of an answer, in seconds: it says how many answers a replica writes at once."""

    prefill: RoleSpec = RoleSpec()
    """Those that compute prompts."""

    decode: RoleSpec = RoleSpec()
    """Those that write answers, and compute what is not worth sending."""

    target_utilization: Share = 0.7
    """Share of a replica's measured speed that is planned for."""

    window_s: Annotated[float, Field(ge=2, le=3600)] = 60.0
    """Demand is averaged over this many seconds, and over a tenth of them to notice surges."""

    scale_down_delay_s: Annotated[float, Field(ge=0, le=3600)] = 900.0
    """Replicas of a role leave when fewer have sufficed for this long."""

    peers: tuple[str, ...] | None = None
    """Hosts whose prompts are taken, as of ``kv_transfer.peers``; null: this machine, where all replicas run on it."""

    @model_validator(mode="after")
    def _both_roles_fit(self) -> Self:
        fewest = self.prefill.min_replicas + self.decode.min_replicas
        if fewest > self.max_replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, and both roles have {fewest} at least. "
                "Raise max_replicas or lower min_replicas of a role."
            )
        return self

    @property
    def max_prefill(self) -> int:
        """Most replicas that compute prompts."""
        return _most(self.prefill, self.max_replicas - self.decode.min_replicas)

    @property
    def max_decode(self) -> int:
        """Most replicas that write answers."""
        return _most(self.decode, self.max_replicas - self.prefill.min_replicas)


def _most(role: RoleSpec, room: int) -> int:
    return room if role.max_replicas is None else min(role.max_replicas, room)


class PlacementSpec(BaseModel):
    """On which machines replicas may run, by the machines' labels."""

    model_config = _FROZEN

    labels: dict[str, str] = {}
    """Labels that a machine must have, such as ``{region: eu, accelerator: h100}``."""

    fallbacks: tuple[dict[str, str], ...] = ()
    """Labels to accept instead, in this order, where no machine has the first ones."""

    regions: tuple[str, ...] = ()
    """Regions that data may enter; empty allows all. No fallback leads out of them."""

    num_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Accelerators of one replica."""

    @model_validator(mode="after")
    def _stays_in_its_regions(self) -> Self:
        for labels in (self.labels, *self.fallbacks):
            region = labels.get("region")
            if self.regions and region is not None and region not in self.regions:
                raise ValueError(
                    f"the label region={region} is outside of regions: {', '.join(self.regions)}. Remove it or add the region."
                )
        return self


class RolloutSpec(BaseModel):
    """How a changed service replaces the one that runs."""

    model_config = _FROZEN

    kind: Literal["rolling", "blue_green", "canary"] = "rolling"
    """``rolling``: replica after replica, on the same accelerators. ``blue_green``: a whole second set starts, then takes all
    requests at once. ``canary``: the second set takes the shares of ``steps`` in turn. The last two need room for both sets, and
    go back to the first one where the second does not come up, is lost, or fails more requests."""

    steps: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.05, 0.25, 0.5)
    """Shares of the requests that a canary takes before it takes all; rising."""

    step_s: Seconds = 60.0
    """Least time in each step, and with all requests before the old replicas leave."""

    min_requests: Annotated[int, Field(ge=1)] = 20
    """Requests that the new replicas must have answered in a step before the next; where few come, ten times ``step_s`` do."""

    max_error_rate: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of failures that the new replicas may have beyond that of the old ones."""

    start_timeout_s: Seconds = 1800.0
    """Longest time until all new replicas are up."""

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps must rise, such as [0.05, 0.25, 0.5]; {list(self.steps)} do not")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the requests, that the new replicas take in turn; the last is all."""
        return (*self.steps, 1.0) if self.kind == "canary" else (1.0,)


class ServiceSpec(BaseModel):
    """One model as a service of many replicas."""

    model_config = _FROZEN

    model: str
    """The registry's name of the model."""

    scaling: ScalingSpec = ScalingSpec()
    """How many replicas."""

    placement: PlacementSpec = PlacementSpec()
    """Where they run."""

    rollout: RolloutSpec = RolloutSpec()
    """How a changed service replaces the one that runs."""
