"""Sizes of both roles over time: they follow what is asked for, keep their bounds, and stand still while nothing changes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.scaling.autoscale.decide_roles import RolesLook, RolesState, decide_roles, restarted_roles
from sixfold.scaling.autoscale.roles import RoleDemand, Roles
from sixfold.scaling.autoscale.step_time import Measured, StepTime
from sixfold.scaling.spec import RolesSpec

STEP = StepTime(base_s=0.01, per_prefill_s=1e-4, per_row_s=2.5e-4, per_kv_s=0.0)
"""A prefill replica computes 9,500 prompt tokens a second in steps of 2,048; a decode one 2,460 tokens with 64 rows in 26 ms."""

CHUNK = 2048.0
MAX_ROWS = 64
SPEC = RolesSpec(
    max_replicas=12, ttft_s=1.0, inter_token_s=0.026, target_utilization=0.7, window_s=20, scale_down_delay_s=60
)


@dataclass
class World:
    """Servers of both roles as a fluid: prompts queue at one, streams at the other, each second is one look.

    Attributes:
        prompts: Prompt tokens that come each second.
        answers: Tokens of answers that come to be written each second.
    """

    prompts: float = 0.0
    answers: float = 0.0
    queue: float = 0.0
    unwritten: float = 0.0
    now_s: float = 0.0
    runs: Roles = field(default_factory=lambda: Roles(num_prefill=1, num_decode=1))
    state: RolesState | None = None

    def look(self) -> RolesLook:
        self.queue += self.prompts
        self.unwritten += self.answers
        prompts = min(
            self.queue, self.runs.num_prefill * CHUNK / STEP.seconds(prefill_tokens=CHUNK, decode_rows=0, kv_tokens=0)
        )
        answers = min(self.unwritten, self.runs.num_decode * MAX_ROWS / (STEP.base_s + MAX_ROWS * STEP.per_row_s))
        self.queue -= prompts
        self.unwritten -= answers
        return RolesLook(
            current=self.runs,
            served=RoleDemand(prefill_tokens_per_s=prompts, decode_tokens_per_s=answers),
            prefill=_prefilled(prompts),
            decode=self._decoded(answers),
            waiting_tokens=self.queue,
            num_streams=self.rows(answers) * self.runs.num_decode + self.unwritten / 100.0,
            max_step_tokens=CHUNK,
            max_rows=MAX_ROWS,
        )

    def rows(self, answers: float) -> float:
        """Sequences that decode together at each replica so that this many tokens come out."""
        each = answers / self.runs.num_decode
        return each * STEP.base_s / (1.0 - each * STEP.per_row_s)

    def _decoded(self, answers: float) -> Measured | None:
        if answers == 0.0:
            return None
        rows = max(1.0, self.rows(answers))
        steps = answers / rows
        seconds = steps * STEP.base_s + answers * STEP.per_row_s
        return Measured(steps=steps, prefill_tokens=0.0, decode_rows=answers, kv_tokens=0.0, seconds=seconds)

    def step(self, seconds: int = 1) -> Roles:
        for _ in range(seconds):
            self.now_s += 1.0
            state = self.state or restarted_roles(self.runs, self.now_s)
            decision = decide_roles(SPEC, state, self.look(), self.now_s)
            self.state, self.runs = decision.state, decision.roles
        return self.runs

    @property
    def sizes(self) -> tuple[int, int]:
        return self.runs.num_prefill, self.runs.num_decode


def _prefilled(tokens: float) -> Measured | None:
    if tokens == 0.0:
        return None
    steps = max(1.0, tokens / CHUNK)
    seconds = steps * STEP.base_s + tokens * STEP.per_prefill_s
    return Measured(steps=steps, prefill_tokens=tokens, decode_rows=0.0, kv_tokens=0.0, seconds=seconds)


def served(work: Measured) -> RoleDemand:
    """Of a look after one second."""
    return RoleDemand(prefill_tokens_per_s=work.prefill_tokens, decode_tokens_per_s=work.decode_rows)


def test_without_any_traffic_there_is_one_of_each() -> None:
    world = World(runs=Roles(num_prefill=3, num_decode=3))
    world.step(200)
    assert world.sizes == (1, 1)


def test_more_prompts_bring_prefill_replicas_and_more_answers_decode_replicas() -> None:
    world = World(prompts=2_000, answers=500)
    world.step(60)
    assert world.sizes == (1, 1)
    world.prompts = 20_000
    world.step(60)
    assert world.runs.num_prefill >= 3
    assert world.runs.num_decode == 1
    world.answers = 6_000
    world.step(60)
    assert world.runs.num_decode >= 3
    assert world.queue == 0.0
    assert world.unwritten == 0.0


def test_a_decision_tells_by_what_it_was_made() -> None:
    world = World(prompts=20_000, answers=500)
    world.step(60)
    assert "20,000 prompt tokens a second keep 3." in world.runs.reason


def test_a_surge_is_answered_before_the_window_has_passed() -> None:
    world = World(prompts=2_000, answers=500)
    world.step(60)
    world.prompts = 60_000
    assert world.step(4).num_prefill >= 4


def test_replicas_leave_after_the_delay_and_not_before() -> None:
    world = World(prompts=20_000, answers=6_000)
    before = world.step(100)
    world.prompts = world.answers = 0.0
    assert world.step(50).total == before.total
    world.step(60)
    assert world.sizes == (1, 1)


def test_one_role_may_grow_by_what_the_other_only_keeps_for_a_while() -> None:
    world = World(prompts=50_000, answers=500)
    world.step(60)
    assert world.runs.num_prefill >= 7
    world.prompts, world.answers = 2_000, 20_000
    world.step(40)
    assert world.runs.num_decode >= 9
    assert world.runs.total == SPEC.max_replicas


def test_a_demand_around_a_whole_number_moves_no_replica_to_and_fro_where_all_run_that_may() -> None:
    world = World(prompts=20_600, answers=13_600)
    runs = world.step(100)
    assert runs.total == SPEC.max_replicas
    for world.prompts, world.answers in ((19_300, 13_950), (20_600, 13_600)) * 3:
        assert world.step(30) == replace(runs, reason=world.runs.reason)


def test_what_runs_stays_until_a_step_was_measured() -> None:
    runs = Roles(num_prefill=3, num_decode=4)
    look = RolesLook(current=runs, waiting_tokens=100.0, num_streams=5.0)
    state = restarted_roles(runs, 0.0)
    for now_s in range(1, 500):
        decision = decide_roles(SPEC, state, look, float(now_s))
        state = decision.state
        assert (decision.roles.num_prefill, decision.roles.num_decode) == (3, 4)


def test_until_a_prompt_was_computed_elsewhere_prefill_is_sized_by_what_prompts_took_where_they_are() -> None:
    runs = wanted = Roles(num_prefill=1, num_decode=4)
    state = restarted_roles(runs, 0.0)
    for now_s in range(1, 100):
        work = Measured(
            steps=40 + now_s % 3,
            prefill_tokens=20_000.0,
            decode_rows=400.0 + now_s % 7,
            kv_tokens=0.0,
            seconds=0.01 * (40 + now_s % 3) + 2.0 + 2.5e-4 * (400 + now_s % 7),
        )
        look = RolesLook(current=runs, served=served(work), decode=work, num_streams=8.0, max_step_tokens=CHUNK)
        decision = decide_roles(SPEC, state, look, float(now_s))
        state, wanted = decision.state, decision.roles
    assert wanted.num_prefill >= 3


def test_the_promised_pace_holds_and_sizes_rest_where_decode_replicas_compute_prompts_between_answers() -> None:
    runs = Roles(num_prefill=1, num_decode=4)
    rests: list[tuple[int, int]] = []
    state = restarted_roles(runs, 0.0)
    for now_s in range(1, 400):
        prompts, answers = 16_000.0 - 100.0 * (now_s % 3), 6_000.0 - 50.0 * (now_s % 5)
        free_s = runs.num_decode - prompts * STEP.per_prefill_s - answers * STEP.per_row_s
        steps = free_s / STEP.base_s
        pace_s = runs.num_decode / steps
        work = Measured(
            steps=steps, prefill_tokens=prompts, decode_rows=answers, kv_tokens=0.0, seconds=float(runs.num_decode)
        )
        look = RolesLook(
            current=runs,
            served=served(work),
            prompts_at_decode_tokens_per_s=prompts,
            decode=work,
            num_streams=answers * pace_s,
            max_rows=MAX_ROWS,
        )
        decision = decide_roles(SPEC, state, look, float(now_s))
        state, runs = decision.state, decision.roles
        if now_s > 200:
            rests.append((runs.num_prefill, runs.num_decode))
            assert pace_s <= SPEC.inter_token_s
    assert len(set(rests)) == 1
    assert "prompts that decode replicas compute count" in runs.reason


def test_a_pace_that_not_even_one_answer_has_does_not_bring_replicas_without_end() -> None:
    spec = SPEC.model_copy(update={"inter_token_s": 1e-4})
    runs, state = Roles(num_prefill=1, num_decode=1), restarted_roles(Roles(num_prefill=1, num_decode=1), 0.0)
    for now_s in range(1, 100):
        work = Measured(steps=50.0, prefill_tokens=10.0, decode_rows=50.0, kv_tokens=0.0, seconds=0.5)
        look = RolesLook(current=runs, served=served(work), decode=work, num_streams=0.5)
        decision = decide_roles(spec, state, look, float(now_s))
        state, runs = decision.state, decision.roles
    assert runs.num_decode == 1


rates = st.floats(0, 2e5, allow_nan=False)


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 25_000), st.floats(0, 12_000))
def test_under_constant_demand_the_sizes_come_to_rest(prompts: float, answers: float) -> None:
    """As far as there may be enough replicas: where there may not, queues grow for ever and nothing is constant."""
    world = World(prompts=prompts, answers=answers)
    world.step(200)
    rests = world.sizes
    for _ in range(400):
        world.step()
        assert world.sizes == rests


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 40), rates, rates), min_size=1, max_size=8))
def test_whatever_comes_there_is_one_of_each_role_and_never_more_than_allowed(
    phases: list[tuple[int, float, float]],
) -> None:
    world = World()
    for seconds, prompts, answers in phases:
        world.prompts, world.answers = prompts, answers
        for _ in range(seconds):
            runs = world.step()
            assert runs.num_prefill >= 1
            assert runs.num_decode >= 1
            assert runs.total <= SPEC.max_replicas


@settings(deadline=None, max_examples=60)
@given(rates, rates, rates)
def test_more_demand_never_means_fewer_replicas(prompts: float, answers: float, more: float) -> None:
    less, much = World(prompts=prompts, answers=answers), World(prompts=prompts + more, answers=answers)
    assert much.step(100).num_prefill >= less.step(100).num_prefill
