"""Probes go on whatever replicas answer, and a gateway that can't probe any more doesn't pretend to serve."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from sixfold.core.serving.lifecycle import serve
from sixfold.core.serving.settings import ServerSettings
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.gateway.settings import GatewaySettings
from sixfold.scaling.registry import SqliteRegistry
from tests.scaling.gateway.scripted import WAIT_S, RunningGateway, ScriptedReplica, fleet


async def until_state(gateway: RunningGateway, replica: ScriptedReplica, state: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while (await gateway.ask_json(path="/ready", method="GET"))["replicas"][replica.url] != state:
            pass


@pytest.mark.parametrize(
    "listing",
    [
        pytest.param(b'{"data": [{"id": "\xff"}]}', id="a name that is not UTF-8"),
        pytest.param(b'{"data": [' + b"[" * 100_000, id="nested beyond measure"),
        pytest.param(b'{"data": [{}]}', id="a model without a name"),
        pytest.param(b"no JSON", id="no JSON"),
    ],
)
async def test_a_replica_that_lists_nonsense_is_down_and_the_others_are_probed_on(listing: bytes) -> None:
    odd, good = ScriptedReplica("odd"), ScriptedReplica("good")
    async with fleet(odd, good, health={"interval_s": 0.02}) as gateway:
        odd.raw_listing = listing
        await until_state(gateway, odd, "down")
        assert await gateway.ask_json() == {"by": "good"}
        odd.raw_listing = None
        await until_state(gateway, odd, "up")


async def test_a_gateway_whose_probing_ends_by_a_defect_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "server": ServerSettings(port=0),
        "health": {"interval_s": 0.02},
        "replicas": [{"url": "http://127.0.0.1:9"}],
    }
    gateway = Gateway(GatewaySettings.model_validate(settings))
    listening = asyncio.Event()
    serving = asyncio.create_task(serve(gateway, on_listening=lambda _listening: listening.set()))
    async with asyncio.timeout(WAIT_S):
        await listening.wait()

        def broken(*_given: object) -> None:
            raise KeyError("a defect")

        monkeypatch.setattr(gateway.fleet, "unreachable", broken)
        with pytest.raises(ExceptionGroup) as ended:
            await serving
    assert ended.group_contains(KeyError)


def test_a_row_that_can_not_be_read_hides_no_other(tmp_path: Path) -> None:
    registry = SqliteRegistry(tmp_path / "replicas.db")
    with sqlite3.connect(tmp_path / "replicas.db") as connection:
        connection.execute("INSERT INTO replicas VALUES ('a', 1, 1, '\xff')")
    connection.close()
    assert registry.rows() == []
