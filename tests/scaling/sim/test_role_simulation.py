"""Prefill and decode replicas as fleets of their own on a trace: what the running system decides, and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest

from sixfold.scaling.sim.experiment import simulate
from sixfold.scaling.sim.outcome import keeps
from sixfold.scaling.sim.request import Outcome, TraceRequest
from sixfold.scaling.sim.settings import SimulationSettings
from sixfold.scaling.spec import Slo

STEP = {"base_s": 0.01, "per_prefill_s": 1e-4, "per_row_s": 2.5e-4}
SCALING = {
    "max_replicas": 12,
    "ttft_s": 1.0,
    "inter_token_s": 0.03,
    "window_s": 20,
    "scale_down_delay_s": 60,
}
GATEWAY = {"prefill_tokens_per_s": 9_000, "kv_bytes_per_token": 1e5, "link_bytes_per_s": 1e10}


def settings(**changes: Any) -> SimulationSettings:
    data: dict[str, Any] = {
        "trace": {"path": "none.csv"},
        "replica": {"step_time": STEP, "max_step_tokens": 2048, "max_rows": 64},
        "scaling": {"min_replicas": 1, "max_replicas": 1, "cold_start_s": 10},
        "slo": {"ttft_s": 2.0},
        "routing": "least_loaded",
        "static_fleets": False,
        "roles": {"scaling": SCALING, "gateway": GATEWAY},
    }
    return SimulationSettings.model_validate({**data, **changes})


def steady(rate_per_s: float, seconds: float, *, prompt: int, output: int, start_s: float = 0.0) -> list[TraceRequest]:
    return [
        TraceRequest(arrived_s=start_s + n / rate_per_s, prompt_tokens=prompt, output_tokens=output)
        for n in range(int(rate_per_s * seconds))
    ]


def largest(run_decisions: list[tuple[float, str, int, str]], service: str, since_s: float = 0.0) -> int:
    return max((count for at_s, name, count, _ in run_decisions if name == service and at_s >= since_s), default=1)


def test_long_prompts_bring_prefill_replicas_and_long_answers_decode_replicas() -> None:
    prompts = simulate(settings(), steady(5, 200, prompt=4000, output=20)).history
    answers = simulate(settings(), steady(10, 200, prompt=300, output=800)).history
    assert largest(prompts.decisions, "site-prefill") >= 3
    assert largest(prompts.decisions, "site") <= 2
    assert largest(answers.decisions, "site") >= 4
    assert largest(answers.decisions, "site-prefill") <= 2


def test_every_request_is_answered_and_the_promise_kept_once_there_are_enough() -> None:
    history = simulate(settings(), steady(5, 300, prompt=4000, output=100)).history
    assert {job.outcome for job in history.jobs} == {Outcome.ANSWERED}
    late = [job for job in history.jobs if job.request.arrived_s > 100]
    assert all(keeps(job, Slo(ttft_s=2.0)) for job in late)


def test_both_roles_follow_a_load_whose_kind_changes_and_stay_within_what_may_run() -> None:
    trace = [
        *steady(6, 150, prompt=4000, output=20),
        *steady(12, 150, prompt=300, output=800, start_s=150),
        *steady(1, 200, prompt=300, output=20, start_s=300),
    ]
    history = simulate(settings(), trace).history
    assert largest(history.decisions, "site-prefill") >= 3
    assert largest(history.decisions, "site", since_s=150) >= 4
    assert max(moment.num_ready for moment in history.moments) <= 12
    last = {name: count for _, name, count, _ in history.decisions}
    assert last["site-prefill"] == 1
    assert last["site"] <= 2
    assert all(reason for *_, reason in history.decisions)


def test_a_prompt_that_was_computed_elsewhere_is_not_computed_again() -> None:
    run = simulate(settings(), steady(5, 60, prompt=4000, output=50))
    job = run.history.jobs[-1]
    assert job.given_tokens == 3999
    assert job.first_token_s is not None
    assert job.finished_s is not None
    assert job.finished_s - job.first_token_s < 49 * 0.03, "no prompt is computed between the tokens of an answer"
    assert run.summary.cached_share == 0.0, "what was handed over was in no cache"


@pytest.mark.parametrize(
    ("changes", "next_step"),
    [
        ({"sites": {"a": 1, "b": 1}}, "Name one of sites"),
        ({"losses": [{"site": "site", "at_s": 1}]}, "Remove losses"),
        ({"static_fleets": True}, "Set static_fleets to false"),
    ],
)
def test_what_roles_can_not_be_simulated_with_is_refused_with_what_to_do(
    changes: dict[str, Any], next_step: str
) -> None:
    with pytest.raises(ValueError, match=rf"roles: .* beside them\. {next_step}\."):
        settings(**changes)
