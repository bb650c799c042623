"""The agent: what it makes of the servers' figures, and what it says to the cluster and when."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import httpx
import msgspec
import pytest

from sixfold.core.autoscaling.load import ModelLoad, ServerLoad
from sixfold.scaling.cluster.engine import ClusterError, ServiceStatus
from sixfold.scaling.spec import ScalingSpec
from sixfold.scaling.up.agent import Agent
from sixfold.scaling.up.load import load_between


def server(at_s: float, request_seconds: float, in_flight: float = 0.0, *, started_s: float = 0.0) -> ServerLoad:
    model = ModelLoad(model_name="chat", num_in_flight=in_flight, request_seconds=request_seconds)
    return ServerLoad(server_load=int(in_flight), started_s=started_s, at_s=at_s, models=(model,))


def test_requests_that_came_and_went_between_two_looks_count() -> None:
    assert load_between(server(10, 5), server(12, 11), "chat").num_in_flight == 3.0


def test_a_first_look_and_a_server_that_began_anew_tell_what_is_there_now() -> None:
    assert load_between(None, server(12, 11, 4), "chat").num_in_flight == 4.0
    assert load_between(server(10, 5), server(12, 1, 2, started_s=11.0), "chat").num_in_flight == 2.0


def test_a_server_without_the_model_has_no_load() -> None:
    assert load_between(server(10, 5), server(12, 11), "other") == ModelLoad(model_name="other")


class FakeCluster:
    """What was said to it; it may be out of reach."""

    def __init__(self) -> None:
        self.said: list[dict[str, int]] = []
        self.running: dict[str, ServiceStatus] = {}
        self.is_gone = False
        self.on_run: Callable[[], None] = lambda: None

    def run(self, counts: Mapping[str, int]) -> None:
        self.on_run()
        if self.is_gone:
            raise ClusterError("gone")
        self.said.append(dict(counts))
        self.running = {
            model: ServiceStatus(state="RUNNING", message="", num_running=count)
            for model, count in counts.items()
            if count
        }

    def status(self) -> Mapping[str, ServiceStatus]:
        if self.is_gone:
            raise ClusterError("gone")
        return self.running


class Scene:
    """An agent of one model, its cluster, servers and gateway, all told by the test."""

    def __init__(self, spec: ScalingSpec, http: httpx.AsyncClient) -> None:
        self.now_s = 0.0
        self.cluster = FakeCluster()
        self.loads: dict[str, ServerLoad] = {}
        self.held = 0
        self.broken = httpx.Response(500)
        self.on_load: Callable[[], None] = lambda: None
        self.agent = Agent({"chat": spec}, self.cluster, self, clock=lambda: self.now_s, http=http)

    def urls(self, service: str) -> Sequence[str]:
        return list(self.loads)

    def num_held(self, service: str) -> int:
        return self.held

    async def step(self, after_s: float = 1.0) -> int:
        self.now_s += after_s
        await self.agent.step()
        return self.agent.counts["chat"]


SPEC = ScalingSpec(min_replicas=0, max_replicas=5, concurrency_target=2, target_utilization=1.0, scale_down_delay_s=30)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    def answer(request: httpx.Request) -> httpx.Response:
        load = found.loads[f"http://{request.url.host}"]
        found.on_load()
        if load.at_s < 0:  # a server that is broken
            return found.broken
        return httpx.Response(200, content=msgspec.json.encode(load))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        found = Scene(SPEC, http)
        yield found


async def test_a_service_begins_with_a_replica_even_where_it_may_have_none(scene: Scene) -> None:
    assert await scene.step() == 1
    assert scene.cluster.said == [{"chat": 1}]


async def test_the_cluster_is_told_once_and_again_only_when_something_changes_or_is_missing(scene: Scene) -> None:
    for _ in range(3):
        await scene.step()
    assert scene.cluster.said == [{"chat": 1}]
    scene.cluster.running = {}  # its head came back without memory
    await scene.step()
    assert scene.cluster.said == [{"chat": 1}] * 2


async def test_load_brings_replicas_up_to_the_most_and_silence_takes_them_away_to_none(scene: Scene) -> None:
    await scene.step()
    scene.loads["http://a"] = server(0, 0, 8)
    assert await scene.step() == 4
    scene.loads["http://a"] = server(1, 100, 8)
    assert await scene.step() == 5
    for tick in range(2, 1000):
        scene.loads["http://a"] = server(tick, 100, 0)
        if await scene.step() == 0:
            break
    assert scene.cluster.said[-1] == {"chat": 0}


async def test_a_held_request_brings_back_the_first_replica(scene: Scene) -> None:
    scene.agent.counts["chat"] = 0
    await scene.step()
    scene.held = 1
    assert await scene.step() == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500),
        httpx.Response(200, content=b'{"models":[{"model_name":"\xe9"}]}'),
        httpx.Response(200, content=b"[]"),
    ],
    ids=["refused", "no text", "another form"],
)
async def test_a_replica_whose_figure_is_missing_counts_as_one_that_is_up(scene: Scene, answer: httpx.Response) -> None:
    scene.broken = answer
    await scene.step()
    scene.loads["http://a"] = server(-1, 0)
    assert await scene.step() == 1


async def test_with_all_replicas_lost_their_number_stays(scene: Scene) -> None:
    await scene.step()
    scene.loads["http://a"] = server(0, 0, 8)
    assert await scene.step() == 4
    scene.loads = {}
    for _ in range(200):
        assert await scene.step() == 4


async def test_what_a_cluster_out_of_reach_was_not_told_it_is_told_later(scene: Scene) -> None:
    scene.cluster.is_gone = True
    with pytest.raises(ClusterError):
        await scene.step()
    scene.cluster.is_gone = False
    await scene.step()
    assert scene.cluster.said == [{"chat": 1}]


async def test_what_changes_while_the_cluster_is_told_is_told_at_the_next_step(scene: Scene) -> None:
    scene.cluster.on_run = scene.agent.tell_again
    await scene.step()
    scene.cluster.on_run = lambda: None
    for _ in range(3):
        await scene.step()
    assert scene.cluster.said == [{"chat": 1}] * 2


async def test_a_second_revision_on_trial_is_no_reason_for_more_replicas(scene: Scene) -> None:
    for tick in range(20):
        scene.loads = {f"http://{name}": server(tick, 0) for name in ("old", "new")}
        assert await scene.step() == 1


async def test_what_a_replica_too_many_does_counts_at_those_that_were_ordered(scene: Scene) -> None:
    await scene.step()
    scene.loads = {"http://old": server(0, 0, 4), "http://new": server(0, 0, 4)}
    assert await scene.step() == 4


async def test_a_replica_that_is_still_seen_while_it_leaves_does_not_undo_a_shrink(scene: Scene) -> None:
    await scene.step()
    counts: list[int] = []
    for tick in range(200):
        # It is seen until a step after it was told to go.
        scene.loads = {"http://a": server(tick, 0)} if not counts or counts[-1] or counts[-2:-1] == [1] else {}
        counts.append(await scene.step())
    assert counts[-1] == 0
    assert counts == sorted(counts, reverse=True)


async def test_what_runs_already_stays_when_an_agent_takes_over(scene: Scene) -> None:
    scene.cluster.running = {"chat": ServiceStatus(state="RUNNING", message="", num_running=4)}
    scene.loads = {f"http://r{number}": server(0, 0) for number in range(4)}
    assert await scene.step() == 4
    assert scene.cluster.said == [{"chat": 4}]


async def test_a_model_that_is_removed_while_another_one_is_looked_at_ends_no_step(scene: Scene) -> None:
    scene.agent.change({"chat": SPEC, "other": SPEC})
    await scene.step()
    scene.loads["http://a"] = server(0, 0)
    scene.on_load = lambda: scene.agent.change({"chat": SPEC})
    assert await scene.step() == 1
    assert scene.cluster.said == [{"chat": 1, "other": 1}, {"chat": 1}]
