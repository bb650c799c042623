"""What the autoscaler promises: Knative's published vectors, Baseten's example, and properties that hold for any load."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.autoscaling.load import ModelLoad
from sixfold.scaling.autoscale.decide import decide, restarted
from sixfold.scaling.autoscale.fleet import Decision, Fleet, State
from sixfold.scaling.spec import ForecastSpec, ScalingSpec, Slo


def fleet(in_flight: float, ready: int, *, starting: int = 0, held: float = 0.0, ttft_s: float | None = None) -> Fleet:
    loads = (ModelLoad(model_name="m", num_in_flight=in_flight / max(1, ready)),) * ready
    return Fleet(loads=loads, num_starting=starting, num_held=held, ttft_s=ttft_s)


@dataclass
class Run:
    """A service whose replicas start at once."""

    spec: ScalingSpec
    ready: int = 1
    state: State = field(default_factory=State)
    now_s: float = 0.0

    def tick(self, in_flight: float, *, seconds: float = 2.0, ttft_s: float | None = None) -> Decision:
        self.now_s += seconds
        held = in_flight if self.ready == 0 else 0.0
        seen = fleet(in_flight, self.ready, ttft_s=ttft_s) if self.ready else fleet(0, 0, held=held)
        decision = decide(self.spec, self.state, seen, self.now_s)
        self.ready, self.state = decision.num_replicas, decision.state
        return decision

    def for_seconds(self, seconds: float, in_flight: float) -> list[int]:
        return [self.tick(in_flight).num_replicas for _ in range(int(seconds / 2))]


def knative(**changes: object) -> ScalingSpec:
    """Knative's defaults in its own tests: a target of 10 after utilization, no delay, no step in shrinking."""
    values: dict[str, object] = {
        "concurrency_target": 10.0,
        "target_utilization": 1.0,
        "window_s": 60.0,
        "scale_down_delay_s": 0.0,
        "max_scale_down_rate": 1.0,
        "max_scale_up_rate": 10.0,
        "max_replicas": 10_000,
        **changes,
    }
    return ScalingSpec.model_validate(values)


def test_baseten_25_in_flight_at_seven_tenths_of_ten_each_want_four() -> None:
    spec = ScalingSpec(concurrency_target=10, target_utilization=0.7, max_replicas=10)
    decision = decide(spec, State(), fleet(25, 1), 0.0)
    assert decision.num_replicas == 4
    assert decision.reason.startswith("requests keep 3.57 replicas busy")


@pytest.mark.parametrize(
    ("in_flight", "ready", "wanted"),
    [
        (50, 1, 5),  # a steady 50 at 10 each
        (51, 1, 6),  # any excess rounds up
        (10_000, 1, 10),  # no more than the rate times the ready ones
        (9, 1, 1),
        (0, 1, 0),
    ],
)
def test_knative_vectors_of_one_decision(in_flight: float, ready: int, wanted: int) -> None:
    assert decide(knative(), State(), fleet(in_flight, ready), 0.0).num_replicas == wanted


def test_knative_growth_is_at_least_one_replica_where_the_rate_rounds_to_none() -> None:
    # Rate 1.1, 3 in flight, 2 ready, target 1: the rate allows 2.2, which must round up to 3.
    spec = knative(max_scale_up_rate=1.1, concurrency_target=1.0)
    assert decide(spec, State(), fleet(3, 2), 0.0).num_replicas == 3


def test_knative_a_surge_to_twice_the_ready_replicas_panics_and_less_does_not() -> None:
    run = Run(knative(), ready=10)
    run.for_seconds(60, 100)
    assert not run.tick(190).panicking
    run = Run(knative(), ready=10)
    run.for_seconds(60, 100)
    for _ in range(2):
        run.ready = 10
        run.tick(200)
    run.ready = 10
    decision = run.tick(200)  # the panic window of 6 s is full of it
    assert decision.panicking
    assert decision.num_replicas == 20


def test_knative_a_panic_ends_one_stable_window_after_the_last_surge_and_only_then_shrinks() -> None:
    run = Run(knative(), ready=1)
    assert run.tick(100).num_replicas == 10
    sizes = run.for_seconds(60, 10)
    assert set(sizes) == {10}
    assert run.tick(10).num_replicas < 10


def test_knative_an_autoscaler_that_lost_its_history_removes_nothing_for_a_window() -> None:
    run = Run(knative(), ready=20, state=restarted(fleet(0, 20), 0.0))
    assert set(run.for_seconds(60, 10)) == {20}
    assert run.tick(10).num_replicas < 20


def test_replicas_leave_after_the_delay_half_of_the_excess_at_a_time() -> None:
    spec = ScalingSpec(target_utilization=1.0, scale_down_delay_s=60, window_s=2, min_replicas=1, max_replicas=20)
    run = Run(spec, ready=9)
    run.for_seconds(30, 9)
    sizes = run.for_seconds(400, 1)
    assert sizes[0] == 9
    steps = [after for before, after in itertools.pairwise(sizes) if after != before]
    assert steps == [5, 3, 2, 1]


def test_a_wish_within_the_delay_keeps_its_replicas() -> None:
    spec = ScalingSpec(target_utilization=1.0, scale_down_delay_s=300, window_s=10, max_replicas=20, panic_threshold=9)
    run = Run(spec, ready=5)
    sizes: list[int] = []
    for _ in range(20):  # a burst each 200 s
        run.for_seconds(20, 5)
        sizes += run.for_seconds(180, 1)
    assert set(sizes) == {5}


def test_an_unused_service_goes_to_zero_and_one_request_brings_it_back() -> None:
    run = Run(ScalingSpec(scale_down_delay_s=30, window_s=10, max_replicas=4), ready=1)
    run.for_seconds(10, 0.5)
    assert run.for_seconds(60, 0)[-1] == 0
    decision = run.tick(1)
    assert decision.num_replicas >= 1
    assert decision.reason


def test_a_request_between_two_decisions_keeps_the_service_up_for_a_window() -> None:
    run = Run(ScalingSpec(scale_down_delay_s=0, window_s=60, max_replicas=4), ready=1)
    run.tick(0.01)  # 20 ms of one request within 2 s
    assert set(run.for_seconds(58, 0)) == {1}
    assert run.tick(0).num_replicas == 0


def test_queued_work_of_any_unit_counts_by_the_time_it_takes() -> None:
    spec = ScalingSpec(concurrency_target=100, target_drain_s=2.0, target_utilization=1.0, max_replicas=50)
    frames = ModelLoad(model_name="asr", num_in_flight=1, queued_units=30_000, units_per_s=1_000)
    latents = ModelLoad(model_name="image", num_in_flight=1, queued_units=120, units_per_s=4)
    for load in (frames, latents):
        decision = decide(spec, State(), Fleet(loads=(load,)), 0.0)
        assert decision.num_replicas == 15
        assert "work" in decision.reason


def test_a_full_cache_asks_for_replicas_where_few_requests_are_in_flight() -> None:
    spec = ScalingSpec(concurrency_target=100, target_cache_use=0.8, target_utilization=1.0, max_replicas=50)
    loads = tuple(ModelLoad(model_name="m", num_in_flight=2, cache_use=1.0) for _ in range(4))
    decision = decide(spec, State(), Fleet(loads=loads), 0.0)
    assert decision.num_replicas == 5
    assert "cache" in decision.reason


def test_broken_promises_add_replicas_and_comfort_removes_them_within_bounds() -> None:
    spec = ScalingSpec(
        concurrency_target=4,
        window_s=10,
        scale_down_delay_s=10,
        max_replicas=100,
        slo=Slo(ttft_s=1.0),
        panic_threshold=50,
    )
    run = Run(spec, ready=8)
    run.for_seconds(20, 20)
    before = run.ready
    for _ in range(30):
        run.tick(20, ttft_s=3.0)
    assert run.ready > before
    assert run.state.share >= 0.25
    grown = run.ready
    for _ in range(400):
        run.tick(20, ttft_s=0.1)
    assert run.ready < grown
    assert run.state.share <= 4.0


def test_the_forecast_orders_replicas_before_a_ramp_needs_them_and_removes_none() -> None:
    base = {
        "target_utilization": 1.0,
        "window_s": 30,
        "cold_start_s": 120,
        "max_replicas": 100,
        "scale_down_delay_s": 60,
    }
    plain = Run(ScalingSpec.model_validate(base))
    ahead = Run(ScalingSpec.model_validate({**base, "forecast": ForecastSpec(bucket_s=30)}))
    for tick in range(450):
        load = tick / 15
        assert ahead.tick(load).num_replicas >= plain.tick(load).num_replicas
    assert ahead.ready >= plain.ready + 2


loads = st.lists(st.floats(0, 5_000), min_size=1, max_size=60)


def bounded(low: int, spread: int, target: float, utilization: float, delay: float, rate: float) -> ScalingSpec:
    return ScalingSpec(
        min_replicas=low,
        max_replicas=max(1, low + spread),
        concurrency_target=target,
        target_utilization=utilization,
        scale_down_delay_s=delay,
        max_scale_down_rate=rate,
    )


specs = st.builds(
    bounded,
    low=st.integers(0, 5),
    spread=st.integers(0, 40),
    target=st.floats(0.5, 64),
    utilization=st.floats(0.1, 1.0),
    delay=st.floats(0, 200),
    rate=st.floats(0.2, 1.0),
)


@given(spec=specs, loads=loads)
@settings(max_examples=60, deadline=None)
def test_any_load_stays_within_the_bounds_and_shrinks_no_faster_than_allowed(
    spec: ScalingSpec, loads: list[float]
) -> None:
    run = Run(spec, ready=max(1, spec.min_replicas))
    for load in loads:
        before = run.ready
        decision = run.tick(load)
        assert spec.min_replicas <= decision.num_replicas <= spec.max_replicas
        assert decision.reason
        if decision.num_replicas < before:
            leaving = before - decision.num_replicas
            assert leaving <= max(1, math.floor(before * spec.max_scale_down_rate))


@given(spec=specs, load=st.floats(0, 2_000))
@settings(max_examples=60, deadline=None)
def test_constant_load_settles_at_what_it_needs_and_never_grows_again(spec: ScalingSpec, load: float) -> None:
    run = Run(spec, ready=max(1, spec.min_replicas))
    run.for_seconds(70, load)
    sizes = [run.tick(load, seconds=10).num_replicas for _ in range(400)]
    assert all(after <= before for before, after in itertools.pairwise(sizes))
    needed = math.ceil(load / (spec.concurrency_target * spec.target_utilization) - 1e-9)
    needed = max(needed, 1 if load > 0 else 0)
    assert sizes[-1] == min(spec.max_replicas, max(spec.min_replicas, needed))


@given(loads=st.lists(st.floats(0, 500), min_size=5, max_size=60))
@settings(max_examples=60, deadline=None)
def test_nothing_shrinks_in_a_panic(loads: list[float]) -> None:
    run = Run(knative())
    before, panicked = run.ready, False
    for load in loads:
        decision = run.tick(load)
        if decision.panicking and panicked:
            assert decision.num_replicas >= before
        before, panicked = decision.num_replicas, decision.panicking


@given(loads=st.lists(st.floats(0, 500), min_size=1, max_size=40), more=st.floats(0, 100))
@settings(max_examples=60, deadline=None)
def test_more_load_never_means_fewer_replicas(loads: list[float], more: float) -> None:
    spec = knative(scale_down_delay_s=900.0)
    small, large = State(), State()
    for tick, load in enumerate(loads):
        first = decide(spec, small, fleet(load, 10), tick * 2.0)
        second = decide(spec, large, fleet(load + more, 10), tick * 2.0)
        small, large = first.state, second.state
        assert second.num_replicas >= first.num_replicas
