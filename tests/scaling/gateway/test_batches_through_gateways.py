"""Files and batches with OpenAI's own client, through two gateways before two real servers of different models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from sixfold.core.object_ids import store_of
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.gateway.settings import GatewaySettings
from tests.core.serving.fake_replica import FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread
from tests.scaling.gateway.scripted import WAIT_S, run_gateway

KEYS = tuple(ApiKeySettings(name=name, sha256=hash_key(name)) for name in ("ana", "ben", "cyd"))
REPLICA_KEY = ApiKeySettings(name="gateway", sha256=hash_key("inner"), acts_for_others=True)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[ServerThread, ServerThread]]:
    settings = ServerSettings(api_keys=(REPLICA_KEY,))
    with (
        ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), settings=settings) as parrots,
        ServerThread(FakeModel("owl", replicas=[FakeReplica()]), settings=settings) as owls,
    ):
        yield parrots, owls


@asynccontextmanager
async def gateway(*servers: ServerThread, **more: object) -> AsyncGenerator[str]:
    """A gateway that knows nothing but the servers' addresses."""
    settings = {
        "replicas": [server.url for server in servers],
        "server": ServerSettings(port=0, api_keys=KEYS),
        "replica_key": "inner",
        **more,
    }
    async with run_gateway(Gateway(GatewaySettings.model_validate(settings))) as running:
        yield running.url


def client(url: str, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url + "/v1", api_key=key, max_retries=0)


def lines(*models: str) -> bytes:
    made = (
        {"custom_id": f"{number}", "method": "POST", "url": "/v1/echo", "body": {"model": model, "input": "a b"}}
        for number, model in enumerate(models)
    )
    return "\n".join(map(json.dumps, made)).encode()


async def begin(ana: openai.AsyncOpenAI, *models: str) -> Any:
    kept = await ana.files.create(file=("lines.jsonl", lines(*models)), purpose="batch")
    endpoint: Any = "/v1/echo"
    return await ana.batches.create(input_file_id=kept.id, endpoint=endpoint, completion_window="24h")


async def ended(ana: openai.AsyncOpenAI, batch_id: str) -> Any:
    async with asyncio.timeout(WAIT_S):
        while (batch := await ana.batches.retrieve(batch_id)).status not in ("completed", "failed"):
            pass
        return batch


async def test_a_batch_runs_where_its_model_is_and_any_gateway_has_its_results(
    servers: tuple[ServerThread, ServerThread],
) -> None:
    for model, server in zip(("parrot", "owl"), servers, strict=True):
        async with gateway(*servers) as url, client(url, "ana") as ana:
            begun = await begin(ana, model, model)
        async with gateway(*reversed(servers)) as url, client(url, "ana") as ana:
            batch = await ended(ana, begun.id)
            assert (batch.status, batch.request_counts.completed) == ("completed", 2)
            found = (await ana.files.content(batch.output_file_id)).text.splitlines()
            assert [json.loads(each)["response"]["body"]["text"] for each in found] == ["a b", "a b"]
            stores = {store_of(each) for each in (batch.id, batch.input_file_id, batch.output_file_id)}
            assert stores == {server.ask("GET", "/ready").json["store_id"]}


async def test_what_one_key_of_a_gateway_keeps_is_not_there_for_another(
    servers: tuple[ServerThread, ServerThread],
) -> None:
    async with gateway(*servers) as url, client(url, "ana") as ana, client(url, "ben") as ben:
        batch = await ended(ana, (await begin(ana, "owl")).id)
        for asked in (
            ben.batches.retrieve(batch.id),
            ben.files.content(batch.output_file_id),
            ben.files.delete(batch.input_file_id),
            ben.batches.create(input_file_id=batch.input_file_id, endpoint="/v1/completions", completion_window="24h"),
        ):
            with pytest.raises(openai.APIStatusError) as refused:
                await asked
            assert refused.value.status_code in (400, 404)
        assert (await ana.files.retrieve(batch.input_file_id)).purpose == "batch"


async def test_a_server_that_is_gone_takes_its_batches_along_and_says_so(
    servers: tuple[ServerThread, ServerThread],
) -> None:
    third = ServerThread(FakeModel("finch", replicas=[FakeReplica()]), settings=ServerSettings(api_keys=(REPLICA_KEY,)))
    with third:
        async with gateway(third) as url, client(url, "ana") as ana:
            batch = await begin(ana, "finch")
    quick = {"interval_s": 0.05, "timeout_s": 0.3}
    async with gateway(*servers, health=quick) as url, client(url, "ana") as ana:
        async with asyncio.timeout(WAIT_S):
            while True:
                with pytest.raises(openai.APIStatusError) as refused:
                    await ana.batches.retrieve(batch.id)
                if refused.value.status_code != 503:
                    break
        assert (refused.value.status_code, refused.value.code) == (410, "holder_gone")


async def test_a_client_walks_through_the_lists_of_all_servers_and_sees_its_own(
    servers: tuple[ServerThread, ServerThread],
) -> None:
    async with gateway(*servers) as url, client(url, "cyd") as cyd, client(url, "ben") as ben:
        made = [(await begin(cyd, model)).id for model in ("parrot", "owl", "parrot", "owl", "owl")]
        walked = [batch.id async for batch in cyd.batches.list(limit=1)]
        assert sorted(walked) == sorted(made)
        assert len(dict.fromkeys(map(store_of, walked))) == 2
        kept = [file.id async for file in cyd.files.list(purpose="batch", limit=2)]
        assert len(set(kept)) == len(kept) == 5
        assert [batch.id async for batch in ben.batches.list(limit=1)] == []
        with pytest.raises(openai.BadRequestError, match="limit"):
            await cyd.batches.list(limit=-1)
        with pytest.raises(openai.BadRequestError, match="after"):
            await cyd.batches.list(after="batch_1")
