"""The agent of a model whose prompts are computed by replicas of their own: it sizes both services by what their steps did."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

import httpx
import msgspec
import pytest

from sixfold.core.autoscaling.load import ModelLoad, ServerLoad, StepWork
from sixfold.core.decisions import DecisionLog
from sixfold.scaling.autoscale.step_time import StepTime
from sixfold.scaling.cluster.engine import ServiceStatus
from sixfold.scaling.spec import RolesSpec, ScalingSpec
from sixfold.scaling.up.agent import Agent
from sixfold.scaling.up.load import steps_between

STEP = StepTime(base_s=0.01, per_prefill_s=1e-4, per_row_s=2.5e-4, per_kv_s=0.0)
SPEC = RolesSpec(max_replicas=6, ttft_s=1.0, inter_token_s=0.03, window_s=10, scale_down_delay_s=30)


def server(at_s: float, *, started_s: float = 0.0, **steps: float) -> ServerLoad:
    load = ModelLoad(model_name="chat", steps=StepWork(**steps) if steps else None)
    return ServerLoad(server_load=0, started_s=started_s, at_s=at_s, models=(load,))


def test_the_work_between_two_looks_is_the_difference_of_what_was_told() -> None:
    before = server(10, num_steps=5, seconds=0.5, input_tokens=100, output_tokens=7)
    after = server(12, num_steps=9, seconds=1.5, input_tokens=500, output_tokens=17)
    work = steps_between(before, after, "chat")
    assert work is not None
    assert (work.steps, work.seconds, work.prefill_tokens, work.decode_rows) == (4, 1.0, 400, 10)


@pytest.mark.parametrize(
    "before",
    [
        None,
        server(10),
        server(10, started_s=1.0, num_steps=1.0),
        server(10, num_steps=9, seconds=1.5),
        server(10, num_steps=50, seconds=9.0),
        server(12, num_steps=1, seconds=0.5),
    ],
    ids=["a first look", "no steps told", "another start", "nothing done", "a worker was replaced", "no time passed"],
)
def test_without_two_looks_at_the_same_server_there_is_no_work(before: ServerLoad | None) -> None:
    assert steps_between(before, server(12, num_steps=9, seconds=1.5), "chat") is None


class Scene:
    """A cluster that runs at once what it is told, and servers that compute and write what the test says."""

    def __init__(self, http: httpx.AsyncClient, *, spec: RolesSpec | ScalingSpec = SPEC) -> None:
        self.now_s = 0.0
        self.said: list[dict[str, int]] = []
        self.running: dict[str, int] = {}
        self.lost: set[str] = set()
        self.silent: set[str] = set()
        self.streams = 0.0
        self.steps: dict[str, StepWork] = {}
        self.prompt_tokens = self.tokens = 0.0
        self.decisions = DecisionLog()
        self.agent = Agent({"chat": spec}, self, self, clock=lambda: self.now_s, http=http, decisions=self.decisions)

    def run(self, counts: Mapping[str, int]) -> None:
        self.said.append(dict(counts))
        self.running = dict(counts)

    def status(self) -> Mapping[str, ServiceStatus]:
        return {
            service: ServiceStatus(state="RUNNING", message="", num_running=count)
            for service, count in self.running.items()
        }

    def urls(self, service: str) -> Sequence[str]:
        count = 0 if service in self.lost else self.running.get(service, 0)
        return [f"http://{service}-{number}" for number in range(count)]

    def num_held(self, service: str) -> int:
        return 0

    async def step(self, seconds: int = 1) -> tuple[int, int]:
        for _ in range(seconds):
            self.now_s += 1.0
            self.work()
            await self.agent.step()
        return self.agent.counts["chat-prefill"], self.agent.counts["chat"]

    def work(self) -> None:
        elsewhere, here = (0.0, self.prompt_tokens) if "chat-prefill" in self.lost else (self.prompt_tokens, 0.0)
        for service, prompts, rows in (("chat-prefill", elsewhere, 0.0), ("chat", here, self.tokens)):
            for url in self.urls(service):
                share = len(self.urls(service))
                self.steps[url] = _after(self.steps.get(url, StepWork()), prompts / share, rows / share)

    def load(self, url: str) -> ServerLoad:
        in_flight = 0.0 if "prefill" in url else self.streams / len(self.urls("chat"))
        model = ModelLoad(
            model_name="chat",
            steps=self.steps[url],
            num_in_flight=in_flight,
            request_seconds=in_flight * self.now_s,
        )
        return ServerLoad(server_load=0, started_s=0.0, at_s=self.now_s, models=(model,))


def _after(before: StepWork, prompt_tokens: float, tokens: float) -> StepWork:
    """A second later: full steps of prompts, or steps of sixteen rows."""
    steps = prompt_tokens / 1000.0 + tokens / 16.0
    seconds = steps * STEP.base_s + prompt_tokens * STEP.per_prefill_s + tokens * STEP.per_row_s
    return StepWork(
        num_steps=before.num_steps + steps,
        seconds=before.seconds + seconds,
        input_tokens=before.input_tokens + prompt_tokens,
        output_tokens=before.output_tokens + tokens,
        budget_units=1000.0,
    )


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    def answer(request: httpx.Request) -> httpx.Response:
        url = f"http://{request.url.host}"
        if url in found.silent:
            raise httpx.ReadTimeout("it computes")
        return httpx.Response(200, content=msgspec.json.encode(found.load(url)))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        found = Scene(http)
        yield found


async def test_a_model_with_roles_begins_with_one_replica_of_each(scene: Scene) -> None:
    assert await scene.step() == (1, 1)
    assert scene.said == [{"chat": 1, "chat-prefill": 1}]


async def test_prompts_bring_prefill_replicas_and_answers_decode_replicas_and_silence_takes_them_away(
    scene: Scene,
) -> None:
    scene.prompt_tokens, scene.tokens = 18_000.0, 300.0
    assert await scene.step(20) == (3, 1)
    scene.prompt_tokens, scene.tokens = 3_000.0, 6_000.0
    prefill, decode = await scene.step(40)
    assert prefill == 1
    assert decode >= 3
    scene.prompt_tokens = scene.tokens = 0.0
    assert await scene.step(60) == (1, 1)
    assert scene.said[-1] == {"chat": 1, "chat-prefill": 1}


async def test_each_change_is_told_with_its_reason_and_its_bounds(scene: Scene) -> None:
    scene.prompt_tokens = 18_000.0
    await scene.step(20)
    told = [each for each in scene.decisions.recent if each.source == "chat-prefill"]
    assert [each.what for each in told] == ["replicas"] * len(told)
    assert (told[0].before, told[-1].after) == (1, 3)
    assert "prompt tokens a second keep" in told[-1].reason
    assert told[-1].objective == "ttft_s <= 1, inter_token_s <= 0.03; 1..5 replicas, 6 of both roles"


async def test_what_runs_already_stays_when_an_agent_takes_over(scene: Scene) -> None:
    scene.running = {"chat": 3, "chat-prefill": 2}
    assert await scene.step(10) == (2, 3)


async def test_roles_that_are_taken_away_leave_the_model_alone(scene: Scene) -> None:
    scene.prompt_tokens = 18_000.0
    await scene.step(20)
    scene.agent.change({"chat": ScalingSpec(min_replicas=1, max_replicas=2)})
    scene.now_s += 1.0
    scene.work()
    await scene.agent.step()
    assert scene.said[-1] == {"chat": 1}


async def test_changed_bounds_hold_at_once_and_what_was_seen_is_not_forgotten(scene: Scene) -> None:
    scene.prompt_tokens = 18_000.0
    assert (await scene.step(20))[0] == 3
    scene.agent.change({"chat": SPEC.model_copy(update={"max_replicas": 3})})
    assert await scene.step() == (2, 1)


async def test_prefill_replicas_that_do_not_come_up_take_nothing_from_those_that_compute_the_prompts_instead(
    scene: Scene,
) -> None:
    scene.running = {"chat": 5, "chat-prefill": 1}
    scene.prompt_tokens, scene.tokens = 18_000.0, 1_000.0
    scene.lost = {"chat-prefill"}
    for _ in range(60):
        assert await scene.step() == (1, 5)
    scene.lost = set()
    prefill, _ = await scene.step(20)
    assert prefill == 3


async def test_with_all_decode_replicas_lost_both_numbers_stay_and_none_leaves_when_they_are_back(scene: Scene) -> None:
    scene.running = {"chat": 3, "chat-prefill": 2}
    await scene.step(10)
    scene.lost = {"chat"}
    for _ in range(100):
        assert await scene.step() == (2, 3)
    scene.lost = set()
    assert await scene.step(10) == (2, 3)
    assert await scene.step(60) == (1, 1)


async def test_a_decode_server_that_is_too_busy_to_answer_is_not_taken_for_idle(scene: Scene) -> None:
    scene.tokens, scene.streams = 3_000.0, 75.0
    _, decode = await scene.step(20)
    assert decode >= 2
    scene.silent = set(scene.urls("chat"))
    assert await scene.step(60) == (1, decode)


async def test_what_was_done_during_a_silence_is_not_taken_for_the_work_of_one_second(scene: Scene) -> None:
    scene.prompt_tokens = 4_000.0
    assert await scene.step(20) == (1, 1)
    scene.silent = set(scene.urls("chat-prefill"))
    assert await scene.step(15) == (1, 1)
    scene.silent = set()
    assert await scene.step(20) == (1, 1)


async def test_a_plain_model_tells_its_decisions_too() -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        model = ModelLoad(model_name="chat", num_in_flight=8.0)
        return httpx.Response(
            200, content=msgspec.json.encode(ServerLoad(server_load=8, started_s=0.0, at_s=1.0, models=(model,)))
        )

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        scene = Scene(http, spec=ScalingSpec(min_replicas=1, max_replicas=4, concurrency_target=4))
        for _ in range(3):
            scene.now_s += 1.0
            await scene.agent.step()
    (told, *_) = scene.decisions.recent
    assert (told.source, told.what, told.before, told.objective) == ("chat", "replicas", 1, "1..4 replicas")
