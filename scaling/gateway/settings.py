"""What an operator may set about the gateway, with defaults and bounds."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from sixfold.core.serving.settings import ServerSettings
from sixfold.core.telemetry.settings import TelemetrySettings
from sixfold.scaling.disagg.planner import SplitCosts
from sixfold.scaling.gateway.plan_settings import PlanSettings
from sixfold.scaling.registry_settings import RegistrySettings, short_registry

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class ReplicaEntry(BaseModel):
    """One replica that is known from the start."""

    model_config = _FROZEN

    url: Annotated[str, Field(pattern=r"^https?://[^/\s]+$")]
    """Its address without a path, such as ``http://10.0.0.7:8000``."""

    region: str = ""
    """Where it runs; requests that name a region prefer it, and locked models stay in theirs."""

    site: str = ""
    """The plan's site that it belongs to; the region unless set."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """How much it takes in relation to others."""

    kv_events: str | None = None
    """Where it announces what it caches, such as ``tcp://10.0.0.7:5557``; for ``routing.policy: kv``."""

    kv_replay: str | None = None
    """Where announcements that were missed can be asked for."""

    role: Literal["any", "prefill"] = "any"
    """``prefill``: computes prompts for the others (its models have ``kv_transfer.listen``), and answers only where no other
    replica does."""


def _replica(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class RoutingSettings(BaseModel):
    """Which replica gets a request."""

    model_config = _FROZEN

    policy: Literal["prefix", "kv", "hash", "power_of_two", "round_robin"] = "prefix"
    """``prefix``: where the beginning of the prompt was sent before, if its queue is worth it. ``kv``: where the replicas say
    that it is cached (needs ``tokenizers``, else as ``prefix``). ``hash``: by session or first block. ``power_of_two``: the
    less loaded of two. ``round_robin``: in turns."""

    session_header: str | None = "x-session-id"
    """Requests with the same value stay with one replica; null: never."""

    remembered_blocks: Annotated[int, Field(ge=1)] = 100_000
    """Blocks of 128 bytes that ``prefix`` remembers of each replica: about what its cache holds."""

    tokenizers: dict[str, str] = {}
    """For ``kv``: a folder or Hugging Face id of the tokenizer, by model name. Prompts of token ids need none."""


class AdmissionSettings(BaseModel):
    """How much the gateway takes on."""

    model_config = _FROZEN

    max_running_per_replica: Annotated[int, Field(ge=1)] = 256
    """Requests at one replica; more wait here, in fair order of keys. Leave it above what a replica runs at once: it batches
    what it has."""

    max_waiting: Annotated[int, Field(ge=0)] = 1024
    """Requests of one model that may wait here; more get 429. The key with the most waiting is refused first."""

    max_buffered_bytes: Annotated[int, Field(ge=1024)] = 1024 * 1024 * 1024
    """Request bodies that are held for replays, all together; more get 429."""

    hold_s: Annotated[float, Field(ge=0)] = 0.0
    """How long requests wait for a replica of a known model when there is none, as while one starts; 0: 503 at once."""


class RetrySettings(BaseModel):
    """Second tries, before the client has seen a byte."""

    model_config = _FROZEN

    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """Tries of one request, the first counted."""

    budget: Share = 0.2
    """Retries at one time as a share of the running requests."""

    min_concurrent: Annotated[int, Field(ge=1)] = 3
    """Retries that are always allowed at one time."""


class HedgeSettings(BaseModel):
    """A second replica for a request whose first byte is late."""

    model_config = _FROZEN

    enabled: bool = False
    """Off unless set: the slower answer's work is lost."""

    quantile: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """A request is late when it is slower than this share of the last ones of its model."""

    budget: Share = 0.05
    """Second tries as a share of the requests."""


class OutlierSettings(BaseModel):
    """When a replica that answers badly is left alone. The names and defaults are Envoy's, but for ``slow_*`` and the last."""

    model_config = _FROZEN

    consecutive_5xx: Annotated[int, Field(ge=1)] = 5
    """Server errors and lost connections in a row that eject a replica."""

    interval_s: Seconds = 10.0
    """Between sweeps, which compare success rates and forgive old ejections."""

    base_ejection_s: Seconds = 30.0
    """How long a replica is left alone, times how often it was ejected lately."""

    max_ejection_s: Seconds = 300.0
    """The most that this grows to."""

    max_ejection_percent: Annotated[int, Field(ge=0, le=100)] = 10
    """Share of the replicas that may be ejected at one time; one always may, unless it is the only one."""

    success_rate_min_hosts: Annotated[int, Field(ge=2)] = 5
    """Success rates are compared among at least so many replicas with enough requests."""

    success_rate_request_volume: Annotated[int, Field(ge=1)] = 100
    """Enough requests in one interval."""

    success_rate_stdev_factor: Annotated[float, Field(gt=0)] = 1.9
    """A replica is ejected whose rate is so many standard deviations below the mean."""

    slow_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = 5.0
    """A replica is ejected whose median time to the first byte is so many times that of the others; null: never."""

    slow_least_s: Seconds = 1.0
    """And at least so much longer."""

    slow_request_volume: Annotated[int, Field(ge=1)] = 20
    """Requests of one interval, of it and of another one, without which nothing is compared."""

    panic_percent: Annotated[int, Field(ge=0, le=100)] = 50
    """With fewer replicas left than this share, ejections are ignored."""


class DisaggregationSettings(BaseModel):
    """When prompts are computed by replicas of the role ``prefill``; the others fetch the blocks (``kv_transfer.peers``)."""

    model_config = _FROZEN

    prefill_tokens_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Prompt tokens that a replica computes in a second; the gateway follows what prompts take, within a factor of 4 of it."""

    kv_bytes_per_token: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Size of a token's keys and values in all layers: 2 x layers x heads of keys x their size x bytes of the type."""

    link_bytes_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e9
    """At which blocks travel between replicas."""

    overhead_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.005
    """What a split costs beside: one more request."""

    interference: Share = 0.7
    """How much running answers slow while a prompt is computed beside them."""

    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """A split must save this share of the waiting."""

    min_prompt_tokens: Annotated[int, Field(ge=1)] = 256
    """Shorter prompts are not even considered."""

    timeout_s: Seconds = 60.0
    """After it, a prompt is computed where it is answered."""

    @property
    def costs(self) -> SplitCosts:
        """The same, for who decides."""
        return SplitCosts(
            kv_bytes_per_token=self.kv_bytes_per_token,
            link_bytes_per_s=self.link_bytes_per_s,
            overhead_s=self.overhead_s,
            interference=self.interference,
            min_gain=self.min_gain,
        )


class HealthSettings(BaseModel):
    """How replicas are watched."""

    model_config = _FROZEN

    interval_s: Seconds = 1.0
    """Between probes of a replica (``/ready`` and ``/v1/models``)."""

    timeout_s: Seconds = 2.0
    """How long a probe may take."""

    connect_timeout_s: Seconds = 1.0
    """How long connecting may take before another replica is tried."""


class GatewaySettings(BaseModel):
    """All settings of one gateway."""

    model_config = _FROZEN

    replicas: tuple[Annotated[ReplicaEntry, BeforeValidator(_replica)], ...] = ()
    """Replicas that are known from the start: addresses, or the mappings below."""

    registry: Annotated[RegistrySettings, BeforeValidator(short_registry)] | None = None
    """Where further replicas publish themselves."""

    plan: PlanSettings | None = None
    """Where set, the hub's plan is followed: shares of sites, region locks, and the servers that the sites' agents run."""

    server: ServerSettings = ServerSettings(port=8080)
    """The HTTP side, as of ``sixfold serve``. With ``api_keys`` the gateway checks keys and sends ``replica_key`` on."""

    replica_key: str | None = None
    """The bearer key that replicas want; null: what the client sent is passed on. Without ``server.api_keys`` it would let
    everyone in, so it is refused then, but on a loopback address."""

    probe_key: str | None = None
    """A key of the replicas for the gateway's own probes, where clients send theirs; null: ``replica_key``."""

    region: str | None = None
    """Where this gateway is: replicas of this region are preferred, unless a request's ``x-region`` names another."""

    resume_streams: bool = False
    """Whether streams of completions go on at another replica when theirs dies: greedy ones, whose tokens are told."""

    routing: RoutingSettings = RoutingSettings()
    """Which replica gets a request."""

    admission: AdmissionSettings = AdmissionSettings()
    """How much the gateway takes on."""

    retries: RetrySettings = RetrySettings()
    """Second tries."""

    hedging: HedgeSettings = HedgeSettings()
    """A second replica when the first is late."""

    outliers: OutlierSettings = OutlierSettings()
    """When a replica is left alone."""

    disaggregation: DisaggregationSettings | None = None
    """Where set, long prompts go to replicas of the role ``prefill`` when that saves waiting."""

    health: HealthSettings = HealthSettings()
    """How replicas are watched."""

    telemetry: TelemetrySettings = TelemetrySettings(service_name="sixfold-gateway")
    """Traces, as of ``sixfold serve``; ``service_name`` is ``sixfold-gateway`` unless set."""

    @field_validator("replicas")
    @classmethod
    def _distinct(cls, replicas: tuple[ReplicaEntry, ...]) -> tuple[ReplicaEntry, ...]:
        urls = [entry.url for entry in replicas]
        for url in urls:
            if urls.count(url) > 1:
                raise ValueError(f"the replica {url!r} is given twice. Remove one")
        return replicas

    @model_validator(mode="after")
    def _has_replicas(self) -> GatewaySettings:
        if not self.replicas and self.registry is None and self.plan is None:
            raise ValueError(
                "there are neither 'replicas' nor a 'registry' nor a 'plan'. Name at least one replica's address"
            )
        return self

    @model_validator(mode="after")
    def _knows_where_it_is(self) -> GatewaySettings:
        if self.plan is not None and not self.region:
            raise ValueError(
                "with a 'plan' the gateway must know where it is: set 'region' to the region of its site. Region locks need it"
            )
        return self

    @model_validator(mode="after")
    def _lends_its_key_to_nobody(self) -> GatewaySettings:
        if self.replica_key is not None and not self.server.api_keys and not _is_loopback(self.server.host):
            raise ValueError(
                f"with 'replica_key' and no 'server.api_keys', whoever reaches {self.server.host} uses the replicas under that "
                "key. Set 'server.api_keys'; or, where clients have keys of the replicas, 'probe_key' in place of 'replica_key'"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
