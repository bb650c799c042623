"""Prompts that the gateway has computed by one replica and answered by another."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sixfold.scaling.route.policy import RequestShape
from sixfold.scaling.route.router import ReplicaFacts
from tests.scaling.gateway.scripted import (
    JSON,
    NOTHING,
    SILENCE,
    Reply,
    RunningGateway,
    ScriptedReplica,
    Seen,
    events,
    fleet,
)

HANDLE = {"handle": {"address": "shm:1"}, "do_remote_prefill": True}
COMPUTED = Reply(parts=(json.dumps({"choices": [], "kv_transfer_params": HANDLE}).encode(),))
ANSWERED = Reply(parts=(b'{"answered": true}',))
LONG: dict[str, Any] = {"model": "m", "prompt": "a long prompt " * 200, "max_tokens": 9, "seed": 3}
COSTS = {"prefill_tokens_per_s": 100.0, "kv_bytes_per_token": 10.0, "min_prompt_tokens": 100}


@asynccontextmanager
async def split_fleet(
    prefill: ScriptedReplica,
    decode: ScriptedReplica,
    *others: ScriptedReplica,
    timeout_s: float = 20.0,
    costs: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncGenerator[RunningGateway]:
    """A gateway whose decode replica writes an answer already, which a prompt beside it would slow."""
    decode.script.insert(0, events("one", then="stall"))
    async with (
        fleet(
            prefill, decode, *others, disaggregation={**(costs or COSTS), "timeout_s": timeout_s}, **settings
        ) as gateway,
        gateway.session.post(gateway.url + "/v1/completions", json={"model": "m", "stream": True}) as running,
    ):
        await running.content.readuntil(b"\n\n")
        yield gateway


def body_of(seen: Seen) -> Mapping[str, Any]:
    body: dict[str, Any] = json.loads(seen.body)
    return body


async def test_a_long_prompt_is_computed_by_one_replica_and_answered_by_another() -> None:
    prefill, decode = ScriptedReplica("p", COMPUTED, role="prefill"), ScriptedReplica("d", ANSWERED)
    async with split_fleet(prefill, decode) as gateway:
        assert await gateway.ask_json(LONG, authorization="Bearer k") == {"answered": True}
        assert await gateway.metric("sixfold:gateway_split_prompts_total", outcome="split") == 1.0
    (computed,) = prefill.seen
    assert body_of(computed) == {
        "model": "m",
        "prompt": LONG["prompt"],
        "max_tokens": 1,
        "kv_transfer_params": {"do_remote_decode": True},
    }
    assert computed.headers["authorization"] == "Bearer k"
    assert body_of(decode.seen[-1]) == {**LONG, "kv_transfer_params": HANDLE}


async def test_a_short_prompt_and_a_prompt_for_an_idle_replica_stay() -> None:
    prefill, decode = ScriptedReplica("p", COMPUTED, role="prefill"), ScriptedReplica("d", ANSWERED)
    async with fleet(prefill, decode, disaggregation=COSTS) as gateway:
        await gateway.ask_json({"model": "m", "prompt": "short"})
        await gateway.ask_json(LONG)
        assert await gateway.metric("sixfold:gateway_split_prompts_total", outcome="stayed") == 1.0
    assert prefill.seen == []
    assert body_of(decode.seen[-1]) == LONG


async def test_a_prompt_stays_once_replicas_have_shown_that_they_are_faster_than_declared() -> None:
    prefill, decode = ScriptedReplica("p", COMPUTED, role="prefill"), ScriptedReplica("d", ANSWERED)
    slow_link = {"kv_bytes_per_token": 3e6}  # 2 s for the blocks: worth it where the prompt takes 7 s, but not 2 s
    async with split_fleet(prefill, decode, costs={**COSTS, **slow_link}) as gateway:
        for _request in range(3):
            await gateway.ask_json(LONG)
        assert await gateway.metric("sixfold:gateway_split_prompts_total", outcome="split") == 1.0
        assert await gateway.metric("sixfold:gateway_split_prompts_total", outcome="stayed") == 2.0


@pytest.mark.parametrize(
    "failing",
    [
        NOTHING,
        Reply(status=503, parts=(b'{"error": {}}',)),
        Reply(parts=(b'{"choices": []}',)),
        Reply(parts=(b"no JSON",)),
        SILENCE,
    ],
)
async def test_a_prompt_that_can_not_be_computed_elsewhere_is_computed_where_it_is_answered(failing: Reply) -> None:
    prefill, decode = ScriptedReplica("p", failing, role="prefill"), ScriptedReplica("d", ANSWERED)
    async with split_fleet(prefill, decode, timeout_s=0.2) as gateway:
        assert await gateway.ask_json(LONG) == {"answered": True}
        assert await gateway.metric("sixfold:gateway_split_prompts_total", outcome="failed") == 1.0
    assert len(prefill.seen) == 1
    assert body_of(decode.seen[-1]) == LONG


async def test_a_prefill_replica_that_fails_five_times_in_a_row_is_left_alone() -> None:
    broken = ScriptedReplica("broken", Reply(status=500, parts=(b"{}",)), role="prefill")
    whole, decode = ScriptedReplica("whole", COMPUTED, role="prefill"), ScriptedReplica("d", ANSWERED)
    async with split_fleet(broken, decode, whole) as gateway:
        for _request in range(16):
            assert await gateway.ask_json(LONG) == {"answered": True}
    assert (len(broken.seen), len(whole.seen)) == (5, 11)


async def test_a_prompt_that_fails_by_its_own_fault_ejects_no_prefill_replica() -> None:
    poisoned = Reply(status=500, parts=(b"{}",), headers={**JSON, "x-should-retry": "false"})
    one, two = (ScriptedReplica(name, poisoned, role="prefill") for name in ("one", "two"))
    async with split_fleet(one, ScriptedReplica("d", ANSWERED), two) as gateway:
        for _request in range(16):
            assert await gateway.ask_json(LONG) == {"answered": True}
    assert len(one.seen) == len(two.seen) == 8


async def test_what_was_routed_to_a_prefill_replica_is_forgotten_with_it() -> None:
    prefill, decode = ScriptedReplica("p", COMPUTED, role="prefill"), ScriptedReplica("d", ANSWERED)
    async with split_fleet(prefill, decode, routing={"policy": "prefix"}) as gateway:
        await gateway.ask_json(LONG)
        router = gateway.gateway.prefill_router
        shape = RequestShape(model="m", prompt_units=10, blocks=(1, 2))
        prefiller = ReplicaFacts(replica_id=prefill.url)
        for expected in (0.0, 1.0):
            decision = router.select(shape, [prefiller], 0.0)
            router.complete(decision)
            assert decision.cached == expected
        gateway.gateway.fleet.set_records([])
        assert router.select(shape, [prefiller], 0.0).cached == 0.0


async def test_a_prefill_replica_answers_where_nobody_else_does() -> None:
    prefill = ScriptedReplica("p", ANSWERED, role="prefill")
    async with fleet(prefill, disaggregation=COSTS) as gateway:
        assert await gateway.ask_json({"model": "m", "prompt": "short"}) == {"answered": True}


@pytest.mark.parametrize("field", ["kv_transfer_params", "\\u006bv_transfer_params"])
@pytest.mark.parametrize("settings", [{}, {"disaggregation": COSTS}])
async def test_clients_may_not_speak_of_transfers(settings: dict[str, Any], field: str) -> None:
    prefill, decode = ScriptedReplica("p", COMPUTED, role="prefill"), ScriptedReplica("d", ANSWERED)
    async with fleet(prefill, decode, **settings) as gateway:
        body = f'{{"model": "m", "prompt": "p", "{field}": {{"do_remote_decode": true}}}}'.encode()
        status, content, _headers = await gateway.ask(body)
    assert status == 400
    assert json.loads(content)["error"]["param"] == "kv_transfer_params"
    assert decode.seen == []
