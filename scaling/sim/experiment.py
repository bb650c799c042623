"""Builds simulations from settings, and compares an autoscaled fleet with fixed ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sixfold.scaling.sim.gateway_routing import gateway_policies
from sixfold.scaling.sim.outcome import Summary, summarize
from sixfold.scaling.sim.replica import ReplicaProfile
from sixfold.scaling.sim.request import TraceRequest
from sixfold.scaling.sim.role_simulation import RoleSimulation
from sixfold.scaling.sim.routing import RoutingPolicy, routing_policies
from sixfold.scaling.sim.settings import SimulationSettings, SplitSettings
from sixfold.scaling.sim.simulation import History, Loss, Rules, Simulation
from sixfold.scaling.sim.site import Site
from sixfold.scaling.sim.traces import read_trace, several_tenants, spiked, synthetic_day, with_origins, with_rate
from sixfold.scaling.spec import ScalingSpec
from sixfold.scaling.up.sizing import RolesSizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One simulated fleet."""

    name: str
    summary: Summary
    history: History


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """An autoscaled fleet beside fixed ones.

    Attributes:
        scaled: The autoscaled one.
        static: Fixed fleets by size, as far as they were simulated.
        equal: The smallest fixed fleet that keeps the objective at least as often; None where none of the sizes tried does.
    """

    scaled: Run
    static: dict[int, Summary]
    equal: int | None

    @property
    def saved_share(self) -> float | None:
        """GPU-hours that the autoscaler saves over the equal fixed fleet, as a share of that one's."""
        if self.equal is None:
            return None
        return 1.0 - self.scaled.summary.gpu_hours / self.static[self.equal].gpu_hours


def make_trace(settings: SimulationSettings) -> tuple[TraceRequest, ...]:
    """The requests of a simulation.

    Raises:
        ConfigError: The trace's file is missing or is none.
    """
    wanted = settings.trace
    trace = read_trace(wanted.path, limit=wanted.limit)
    if wanted.speed != 1.0:
        trace = with_rate(trace, wanted.speed)
    if wanted.tenants > 1:
        trace = several_tenants(trace, wanted.tenants, settings.seed)
    if wanted.day is not None:
        trace = synthetic_day(trace, hours=wanted.day.hours, low=wanted.day.low, seed=settings.seed)
    if wanted.spike is not None:
        spike = wanted.spike
        trace = spiked(trace, at_s=spike.at_s, duration_s=spike.duration_s, factor=spike.factor, seed=settings.seed)
    return with_origins(trace, settings.sites, settings.seed) if len(settings.sites) > 1 else trace


def simulate(settings: SimulationSettings, trace: Sequence[TraceRequest], *, num_static: int | None = None) -> Run:
    """Runs the trace once.

    Args:
        settings: The world.
        trace: From `make_trace`.
        num_static: Replicas of a fixed fleet at each site; None for the autoscaler.
    """
    scaling, initial = settings.scaling, settings.initial_replicas
    if num_static is not None:
        scaling = scaling.model_copy(update={"min_replicas": num_static, "max_replicas": num_static})
        initial = num_static
    sites = _sites(settings, scaling, scaling.min_replicas if initial is None else initial)
    losses = [
        Loss(site=each.site, at_s=each.at_s, duration_s=each.duration_s, detect_s=each.detect_s)
        for each in settings.losses
    ]
    rules = Rules(patience_s=settings.patience_s, travel_s=settings.travel_s, replay_streams=settings.replay_streams)
    simulation = (
        Simulation(sites, rules, losses) if settings.roles is None else _with_roles(settings, settings.roles, rules)
    )
    history = simulation.run(trace)
    name = "autoscaled" if num_static is None else f"static {num_static}"
    return Run(name=name, summary=summarize(history, settings.slo, settings.replica.num_gpus), history=history)


def _profile(settings: SimulationSettings) -> ReplicaProfile:
    replica = settings.replica
    return ReplicaProfile(
        step_time=replica.step_time.step_time,
        max_step_tokens=replica.max_step_tokens,
        max_rows=replica.max_rows,
        cache_tokens=replica.cache_tokens,
        block_tokens=replica.block_tokens,
        overhead_s=replica.overhead_s,
    )


def _policy(settings: SimulationSettings) -> Callable[[], RoutingPolicy]:
    block_tokens = settings.replica.block_tokens
    policies = routing_policies(block_tokens, settings.seed)
    gateway = gateway_policies(block_tokens, settings.seed)
    return {**policies, **{f"gateway_{name}": make for name, make in gateway.items()}}[settings.routing]


def _sites(settings: SimulationSettings, scaling: ScalingSpec, num_initial: int) -> list[Site]:
    profile, make_policy = _profile(settings), _policy(settings)
    return [Site(name, profile, scaling, make_policy(), num_initial=num_initial, now_s=0.0) for name in settings.sites]


def _with_roles(settings: SimulationSettings, roles: SplitSettings, rules: Rules) -> RoleSimulation:
    (name,) = settings.sites
    sizer = RolesSizer(name, roles.scaling, max_rows=settings.replica.max_rows)
    scaling, make_policy = settings.scaling.model_copy(update={"slo": None}), _policy(settings)
    decode, prefill = (
        Site(
            *(service.name, _profile(settings), scaling, make_policy()),
            num_initial=sizer.bounds(service.name)[0],
            now_s=0.0,
        )
        for service in sizer.services
    )
    return RoleSimulation(
        *(decode, prefill, sizer),
        costs=roles.gateway.costs,
        prefill_tokens_per_s=roles.gateway.prefill_tokens_per_s,
        min_prompt_tokens=roles.gateway.min_prompt_tokens,
        rules=rules,
    )


def compare(
    settings: SimulationSettings, trace: Sequence[TraceRequest], report: Callable[[str], None] = lambda _line: None
) -> Frontier:
    """Runs the autoscaler, finds the smallest fixed fleet that does as well, and some around it for the plot.

    Args:
        settings: The world.
        trace: From `make_trace`.
        report: Told what is run.
    """
    report("autoscaled fleet")
    scaled = simulate(settings, trace)
    goal, top = scaled.summary.attainment, max(1, scaled.summary.max_replicas // len(settings.sites))
    static: dict[int, Summary] = {}

    def attains(size: int) -> bool:
        if size not in static:
            report(f"fixed fleet of {size}")
            static[size] = simulate(settings, trace, num_static=size).summary
        return static[size].attainment >= goal

    # More replicas keep more promises but for chance, so the smallest sufficient one is found by halving.
    high = top
    while not attains(high) and high < 2 * top:
        high = min(2 * top, high + max(1, top // 4))
    equal: int | None = None
    if attains(high):
        low = 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if attains(middle) else (middle, high)
        equal = high
    centre = equal or high
    for share in (0.4, 0.55, 0.7, 0.85):
        attains(max(1, round(share * centre)))
    return Frontier(scaled=scaled, static=dict(sorted(static.items())), equal=equal)
