"""``sixfold top``: figures between two looks, frames of live servers and gateways, and what happens when one goes away."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sixfold.core import cli
from sixfold.core.errors import UsageError
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from sixfold.scaling.top.figures import frame_of, quantile
from sixfold.scaling.top.loop import run_top
from sixfold.scaling.top.scrape import Scrape, fetch, read_scrape
from tests.core.serving.fake_replica import FakeModel, FakeReplica, FakeSnapshot
from tests.core.serving.server_thread import ServerThread
from tests.scaling.gateway.scripted import Reply, ScriptedReplica, fleet

BEFORE = """
sixfold:model_ready{model_name="m"} 1
sixfold:num_requests_running{model_name="m"} 3
sixfold:num_requests_waiting{model_name="m",engine="0"} 1
sixfold:num_requests_waiting{model_name="m",engine="1"} 1
sixfold:queued_units{model_name="m",engine="0"} 500
sixfold:drain_rate_units_per_second{model_name="m",engine="0"} 100
sixfold:kv_cache_usage_perc{model_name="m",engine="0"} 0.25
sixfold:kv_cache_usage_perc{model_name="m",engine="1"} 0.96
sixfold:memory_bytes{model_name="m",device="cpu",kind="weights"} 1048576
sixfold:memory_bytes{model_name="the server itself",device="cpu",kind="process"} 7
# TYPE sixfold:generation_tokens_total counter
sixfold:generation_tokens_total{model_name="m",engine="0"} 100
sixfold:generation_tokens_total{model_name="m",engine="1"} 900
sixfold:prefix_cache_queries_total{model_name="m",engine="0"} 100
sixfold:prefix_cache_hits_total{model_name="m",engine="0"} 0
sixfold:requests_failed_total{model_name="m",reason="x"} 4
# TYPE sixfold:time_to_first_token_seconds histogram
sixfold:time_to_first_token_seconds_bucket{model_name="m",le="0.1"} 10
sixfold:time_to_first_token_seconds_bucket{model_name="m",le="0.2"} 10
sixfold:time_to_first_token_seconds_bucket{model_name="m",le="+Inf"} 20
"""
AFTER = (
    BEFORE.replace('total{model_name="m",engine="0"} 100\n', 'total{model_name="m",engine="0"} 300\n')
    .replace('{model_name="m",engine="1"} 900', '{model_name="m",engine="1"} 50')
    .replace('hits_total{model_name="m",engine="0"} 0', 'hits_total{model_name="m",engine="0"} 50')
    .replace('le="0.1"} 10', 'le="0.1"} 14')
    .replace('le="0.2"} 10', 'le="0.2"} 20')
    .replace('le="+Inf"} 20', 'le="+Inf"} 30')
)


def test_rates_are_of_the_time_between_and_gauges_of_now() -> None:
    (model,) = frame_of(read_scrape(BEFORE, 10.0), read_scrape(AFTER, 12.0)).models
    assert (model.state, model.num_running, model.num_waiting, model.queued_s) == ("ready", 3, 2, 5.0)
    assert model.tokens_per_s == (200 + 50) / 2  # the second replica's counter was started anew
    assert model.hit_rate == 50 / 200
    assert (model.cache_use, model.memory_bytes, model.failed_per_s) == (0.96, 1048576, 0.0)
    assert model.ttft_s is not None
    assert list(model.ttft_s) == [pytest.approx(0.1 + 0.1 * 1 / 6), pytest.approx(0.1 + 0.1 * 5.5 / 6)]
    assert model.itl_s is None and model.units_per_s is None


@given(st.lists(st.floats(0.001, 9.99), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_value_of_its_rank(values: list[float], share: float) -> None:
    bounds = [0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, float("inf")]
    buckets = [(bound, float(sum(value <= bound for value in values))) for bound in bounds]
    exact = sorted(values)[max(0, -(-len(values) * int(share * 100) // 100) - 1)]
    upper = next(bound for bound in bounds if exact <= bound)
    lower = max((bound for bound in bounds if bound < exact), default=0.0)
    assert lower <= quantile(buckets, share) <= upper * (1 + 1e-9)


def ask_top(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["top", *arguments, "--once", "--interval", "0.05"])
    out, err = capsys.readouterr()
    return status, out, err


def test_once_prints_one_frame_of_a_live_server(capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = FakeSnapshot(num_running=2, num_waiting=3, metrics={"step_units_total": 5.0})
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica(snapshot=snapshot)]), FakeModel("gone")) as server:
        server.echo()
        status, out, _err = ask_top(capsys, server.url)
    assert status == 0
    (row,) = (line.split() for line in out.splitlines() if line.startswith("parrot "))
    assert row[:5] == ["parrot", "ready", "0", "3", "2"]
    assert any(line.split()[:2] == ["gone", "ready"] for line in out.splitlines())
    assert out.count("MODEL") == 1 and "\x1b" not in out


def test_a_key_is_asked_for_and_used(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIXFOLD_API_KEY", raising=False)
    keys = (ApiKeySettings(name="ann", sha256=hash_key("of-ann")),)
    settings = ServerSettings(api_keys=keys, protect_metrics=True)
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), settings=settings) as server:
        status, _out, err = ask_top(capsys, server.url)
        assert status == 2 and "Give a key with --key" in err
        status, out, _err = ask_top(capsys, server.url, "--key", "of-ann")
    assert status == 0 and "parrot" in out


async def test_a_gateway_shows_its_servers(capsys: pytest.CaptureFixture[str]) -> None:
    replicas = ScriptedReplica("a", Reply()), ScriptedReplica("b", Reply())
    async with fleet(*replicas) as running:
        await running.ask()
        scrape = await asyncio.to_thread(fetch, running.url, key=None, timeout_s=5.0)
        assert scrape.is_gateway
        status, out, _err = await asyncio.to_thread(ask_top, capsys, running.url)
    assert status == 0
    for replica in replicas:
        assert re.search(rf"^{re.escape(replica.url)} +up +0 ", out, flags=re.MULTILINE), out
    assert not any(seen.target == "/load" for replica in replicas for seen in replica.seen)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [(b"# TYPE x gauge\nx 1\n", "has no figures of Sixfold"), (b"<html>{", "is no Prometheus text")],
)
async def test_what_is_no_server_of_ours_is_told(body: bytes, complaint: str) -> None:
    replica = ScriptedReplica("a", Reply(parts=(body,)))
    await replica.start()
    try:
        with pytest.raises(UsageError, match=complaint):
            await asyncio.to_thread(fetch, replica.url, key=None, timeout_s=5.0)
    finally:
        await replica.kill()
    with pytest.raises(UsageError, match="does not answer"):
        await asyncio.to_thread(fetch, replica.url, key=None, timeout_s=5.0)


def looks(*outcomes: Scrape | UsageError) -> Callable[[], Scrape]:
    left = list(outcomes)

    def look() -> Scrape:
        if not left:
            raise KeyboardInterrupt
        outcome = left.pop(0)
        if isinstance(outcome, UsageError):
            raise outcome
        return outcome

    return look


def test_a_server_that_goes_away_is_waited_for_on_a_terminal() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200, height=20)
    slept: list[float] = []
    outcomes = (read_scrape(BEFORE, 1.0), UsageError("It does not answer."), read_scrape(AFTER, 3.0))
    with pytest.raises(KeyboardInterrupt):
        run_top(looks(*outcomes), url="http://x", interval_s=2.0, once=False, console=console, sleep=slept.append)
    assert slept == [2.0] * 3
    shown = screen.getvalue()
    assert shown.index("Still looking") < shown.index("TTFT p50/95")
    assert "125" in shown  # tokens a second, over both intervals


def test_a_server_that_never_answered_is_not_waited_for() -> None:
    with pytest.raises(UsageError):
        run_top(
            looks(UsageError("no")), url="http://x", interval_s=1.0, once=False, console=Console(file=io.StringIO())
        )


@pytest.mark.parametrize("text", ['{{=, =\x01,&"', "a{b=", 'a{b="', "{"])
def test_text_that_is_cut_within_its_labels_is_no_text_of_prometheus(text: str) -> None:
    with pytest.raises(ValueError):
        read_scrape(text, 1.0)
