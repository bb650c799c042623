"""Replicas die, stall, tear connections and answer badly; what clients see of it."""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import pytest

from tests.scaling.gateway.scripted import JSON, NOTHING, SILENCE, Reply, ScriptedReplica, events, fleet

BUSY = Reply(
    status=429,
    parts=(b'{"error": {"message": "full", "type": "rate_limit_error", "param": null, "code": "queue_full"}}',),
    headers={**JSON, "retry-after": "7", "x-should-retry": "true"},
)
BROKEN = Reply(status=500, parts=(b'{"error": "broken"}',))
POISONED = Reply(status=500, parts=(b'{"error": "step failed"}',), headers={**JSON, "x-should-retry": "false"})


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(NOTHING, id="the connection is lost before the answer"),
        pytest.param(Reply(parts=(b'{"half": "an answer"}',), then="tear"), id="it is lost within a short answer"),
        pytest.param(Reply(parts=(), then="tear", chunked=True), id="it is lost before the first part of a stream"),
        pytest.param(BUSY, id="the replica is full"),
        pytest.param(Reply(status=503), id="the replica is not ready"),
        pytest.param(Reply(status=502), id="a proxy before it has lost it"),
    ],
)
async def test_before_the_first_byte_another_replica_answers_and_the_client_sees_nothing_of_it(fault: Reply) -> None:
    bad, good = ScriptedReplica("bad", fault), ScriptedReplica("good")
    async with fleet(bad, good) as gateway:
        for _request in range(4):
            assert await gateway.ask_json() == {"by": "good"}
        assert await gateway.metric("sixfold:gateway_retries_total", model_name="m") == len(bad.seen) > 0


async def test_a_killed_replica_gets_nothing_more_until_a_probe_finds_it_again() -> None:
    dying, good = ScriptedReplica("dying"), ScriptedReplica("good")
    async with fleet(dying, good, health={"interval_s": 0.02}) as gateway:
        await dying.kill()
        for _request in range(10):
            assert await gateway.ask_json() == {"by": "good"}
        ready = await gateway.ask_json(path="/ready", method="GET")
        assert ready["replicas"][dying.url] == "down"
        await dying.start()
        async with asyncio.timeout(20):
            while (await gateway.ask_json()) == {"by": "good"}:
                pass


async def test_all_that_ran_at_a_dying_replica_is_answered_by_the_other_in_waves() -> None:
    dying = ScriptedReplica("dying", SILENCE)
    good = ScriptedReplica("good", Reply(parts=(b'{"by": "good"}',), then="wait"))
    async with fleet(dying, good, retries={"min_concurrent": 2, "budget": 0.2}) as gateway:
        asking = [asyncio.create_task(gateway.ask_json()) for _request in range(16)]
        await dying.wait_seen(8)
        await good.wait_seen(8)
        await dying.kill()
        await good.wait_seen(8 + 3)  # a fifth of 16 at a time
        assert len(good.seen) == 11
        good.go.set()
        assert await asyncio.gather(*asking) == [{"by": "good"}] * 16


async def test_what_may_have_changed_something_is_not_sent_twice() -> None:
    one, two = ScriptedReplica("one", NOTHING), ScriptedReplica("two", NOTHING)
    async with fleet(one, two) as gateway:
        status, content, _headers = await gateway.ask({"model": "m"}, "/v1/videos")
    assert (status, json.loads(content)["error"]["code"]) == (503, "worker_died")
    assert "look before you try again" in json.loads(content)["error"]["message"]
    assert len(one.seen) + len(two.seen) == 1


async def test_tries_are_bounded_and_a_request_that_kills_servers_does_not_kill_all() -> None:
    replicas = [ScriptedReplica(str(number), NOTHING) for number in range(5)]
    async with fleet(*replicas, retries={"max_attempts": 2}) as gateway:
        status, content, headers = await gateway.ask()
    assert (status, json.loads(content)["error"]["code"]) == (503, "worker_died")
    assert headers["x-should-retry"] == "true"
    assert sum(len(replica.seen) for replica in replicas) == 2


@pytest.mark.parametrize("fault", [POISONED, BROKEN, Reply(status=504), Reply(status=400)])
async def test_an_answer_that_another_replica_would_give_too_is_passed_on(fault: Reply) -> None:
    one, two = ScriptedReplica("one", fault), ScriptedReplica("two", fault)
    async with fleet(one, two) as gateway:
        status, content, _headers = await gateway.ask()
    assert (status, content) == (fault.status, fault.parts[0])
    assert len(one.seen) + len(two.seen) == 1


async def test_where_all_are_full_the_replicas_own_answer_is_passed_on_with_its_advice() -> None:
    async with fleet(ScriptedReplica("one", BUSY), ScriptedReplica("two", BUSY)) as gateway:
        status, content, headers = await gateway.ask()
    assert (status, headers["retry-after"]) == (429, "7")
    assert json.loads(content)["error"]["code"] == "queue_full"


async def test_refusals_are_retried_within_the_budget_only() -> None:
    full = ScriptedReplica("full", BUSY)
    slow = ScriptedReplica("slow", Reply(then="wait"))
    async with fleet(full, slow, retries={"min_concurrent": 1, "budget": 0.0}) as gateway:
        asking = [asyncio.create_task(gateway.ask()) for _request in range(6)]
        await full.wait_seen(3)
        await slow.wait_seen(3 + 1)
        slow.go.set()
        statuses = [status for status, _content, _headers in await asyncio.gather(*asking)]
    assert sorted(statuses) == [200] * 4 + [429] * 2


async def test_a_stream_that_is_torn_ends_with_an_error_and_done_after_whole_events() -> None:
    torn = events("one", then="tear")
    torn = Reply(parts=(*torn.parts, b'data: {"te'), headers=torn.headers, then="tear", chunked=True)
    async with fleet(ScriptedReplica("a", torn)) as gateway:
        status, content, _headers = await gateway.ask({"model": "m", "stream": True})
    first, error, done, rest = content.split(b"\n\n")
    assert (status, first, done, rest) == (200, b'data: {"text": "one"}', b"data: [DONE]", b"")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "worker_died"


async def test_any_other_answer_that_is_torn_stays_torn() -> None:
    torn = Reply(parts=(b"RIFF", b"...."), headers={"content-type": "audio/wav"}, then="tear", chunked=True)
    async with fleet(ScriptedReplica("a", torn)) as gateway:
        with pytest.raises(aiohttp.ClientError):
            await gateway.ask({"model": "m"}, "/v1/audio/speech")


async def test_a_draining_replica_gets_no_new_requests_and_ends_those_it_has() -> None:
    leaving = ScriptedReplica("leaving", events("a", "b", then="wait"))
    staying = ScriptedReplica("staying")
    async with fleet(leaving, staying, health={"interval_s": 0.02}) as gateway:
        streaming = asyncio.create_task(gateway.ask({"model": "m", "stream": True}))
        await leaving.wait_seen(1)
        leaving.ready = (503, {"status": "draining"})
        async with asyncio.timeout(20):
            while (await gateway.ask_json(path="/ready", method="GET"))["replicas"][leaving.url] != "draining":
                pass
        assert [await gateway.ask_json() for _request in range(4)] == [{"by": "staying"}] * 4
        leaving.go.set()
        assert (await streaming)[1].endswith(b"data: [DONE]\n\n")


async def test_a_replica_that_says_that_it_drains_is_believed_before_the_next_probe() -> None:
    drains = Reply(status=503, parts=(b'{"error": {"code": "draining"}}',), headers={**JSON, "x-should-retry": "true"})
    leaving, staying = ScriptedReplica("leaving", drains), ScriptedReplica("staying")
    async with fleet(leaving, staying) as gateway:
        assert [await gateway.ask_json() for _request in range(6)] == [{"by": "staying"}] * 6
    assert len(leaving.seen) == 1


async def test_a_replica_that_fails_five_times_in_a_row_is_left_alone() -> None:
    bad, good = ScriptedReplica("bad", BROKEN), ScriptedReplica("good")
    async with fleet(bad, good) as gateway:
        statuses = [(await gateway.ask())[0] for _request in range(40)]
    assert statuses.count(500) == 5 == len(bad.seen)
    assert statuses[-25:] == [200] * 25


async def test_requests_that_fail_by_their_own_fault_eject_nobody() -> None:
    poisoned = ScriptedReplica("poisoned", *[POISONED] * 20, Reply(parts=(b'{"by": "it"}',)))
    async with fleet(poisoned, ScriptedReplica("other")) as gateway:
        for _request in range(42):
            await gateway.ask()
    assert len(poisoned.seen) == 21


async def test_a_deadline_ends_a_request_at_a_stalled_replica_and_is_told_to_replicas() -> None:
    stalled = ScriptedReplica("a", SILENCE)
    async with fleet(stalled) as gateway:
        status, content, _headers = await gateway.ask(x_request_timeout_s="1")
        assert (status, json.loads(content)["error"]["code"]) == (504, "deadline_exceeded")
        assert 0.0 < float(stalled.seen[0].headers["x-request-timeout-s"]) <= 1.0
        deadline = str(time.time() + 1.0)
        assert (await gateway.ask(x_request_deadline=deadline))[0] == 504
        assert float(stalled.seen[1].headers["x-request-timeout-s"]) <= 1.0
        async with asyncio.timeout(20):
            await stalled.left.wait()
        status, content, _headers = await gateway.ask(x_request_deadline="1000.0")
        assert (status, len(stalled.seen)) == (504, 2)
        assert (await gateway.ask(x_request_deadline="soon"))[0] == 400


async def test_without_any_replica_requests_are_refused_or_held_until_one_comes() -> None:
    only = ScriptedReplica("only")
    async with fleet(only) as gateway:
        await only.kill()
        status, content, headers = await gateway.ask()
        assert (status, json.loads(content)["error"]["code"], headers["retry-after"]) == (503, "not_ready", "2")
        assert (await gateway.ask())[0] == 503
    only = ScriptedReplica("only")
    async with fleet(only, health={"interval_s": 0.02}, admission={"hold_s": 20.0}) as gateway:
        await only.kill()
        await gateway.ask()  # finds out
        asking = asyncio.create_task(gateway.ask_json())
        async with asyncio.timeout(20):
            while not await gateway.metric("sixfold:num_requests_waiting", model_name="m"):
                pass
        await only.start()
        assert await asking == {"by": "only"}


async def test_a_late_request_is_answered_by_a_second_replica_and_the_first_one_is_told_to_stop() -> None:
    quick = Reply(parts=(b'{"by": "quick"}',))
    one = ScriptedReplica("one", *[quick] * 20, SILENCE)
    two = ScriptedReplica("two", *[quick] * 20, quick)
    async with fleet(one, two, hedging={"enabled": True, "budget": 1.0}) as gateway:
        for _request in range(40):
            await gateway.ask()
        for _request in range(2):  # one of them goes to the silent replica first
            assert await gateway.ask_json() == {"by": "quick"}
        assert await gateway.metric("sixfold:gateway_hedges_total", outcome="won") >= 1
        async with asyncio.timeout(20):
            await one.left.wait()


async def test_a_gateway_that_drains_ends_what_it_has_and_takes_no_more() -> None:
    slow = ScriptedReplica("slow", events("a", then="wait"))
    async with fleet(slow) as gateway:
        streaming = asyncio.create_task(gateway.ask({"model": "m", "stream": True}))
        await slow.wait_seen(1)
        gateway.gateway.drain.begin()
        status, content, _headers = await gateway.ask()
        assert (status, json.loads(content)["error"]["code"]) == (503, "draining")
        slow.go.set()
        assert (await streaming)[1].endswith(b"data: [DONE]\n\n")


async def test_while_servers_were_never_reached_an_unknown_model_may_still_be_theirs() -> None:
    up, down = ScriptedReplica("up"), ScriptedReplica("down", models=["other"])
    await up.start()
    await down.start()
    await down.kill()
    async with fleet(replicas=[up.url, down.url], health={"interval_s": 0.02}) as gateway:
        status, content, _headers = await gateway.ask({"model": "other"})
        assert (status, json.loads(content)["error"]["code"]) == (503, "not_ready")
        await down.start()
        async with asyncio.timeout(20):
            while (await gateway.ask({"model": "other"}))[0] != 200:
                pass
        assert (await gateway.ask({"model": "nobody's"}))[0] == 404
    await up.kill()
    await down.kill()


async def test_a_replica_that_passes_its_probes_and_answers_nothing_is_left_alone_while_others_serve() -> None:
    grey, good = ScriptedReplica("grey", SILENCE), ScriptedReplica("good")
    rules = {"interval_s": 0.3, "slow_request_volume": 4, "slow_least_s": 0.02, "slow_factor": 2}
    async with fleet(grey, good, outliers=rules) as gateway:
        stuck = [asyncio.create_task(gateway.ask()) for _ in range(10)]
        await grey.wait_seen(4)
        async with asyncio.timeout(20):
            while not gateway.gateway.decisions.recent:
                await gateway.ask(x_request_timeout_s="0.02")
        (told,) = gateway.gateway.decisions.recent
        assert (told.what, told.source) == ("ejected", grey.url)
        assert "where the others take" in told.reason
        assert {(await gateway.ask_json())["by"] for _ in range(6)} == {"good"}
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
