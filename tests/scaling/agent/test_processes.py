"""Replicas as processes: whatever ends one, nothing that is not there is counted."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from sixfold.scaling.agent import processes
from sixfold.scaling.agent.config import AcceleratorSettings, ReplicaSettings
from sixfold.scaling.agent.processes import ProcessEngine
from sixfold.scaling.agent.reconcile import Action, Slot

CHAT = Slot("chat", "h100")
ONE_MORE = Action(slot=CHAT, units=1, num_replicas=1)
ONE_LESS = Action(slot=CHAT, units=1, num_replicas=-1)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ProcessEngine:
    monkeypatch.setattr(processes, "_RESTART_S", 0.0)
    command = (sys.executable, "-c", "input()")
    return ProcessEngine({"h100": AcceleratorSettings(units=8)}, {"chat": ReplicaSettings(command=command)})


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0)


async def test_a_replica_for_which_there_is_no_port_does_not_hold_its_place(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_port() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(processes, "_free_port", no_port)
    engine.act(ONE_MORE)
    assert engine.held()
    await until(lambda: not engine.held())
    assert "Too many open files" in caplog.text


async def test_a_replica_that_is_stopped_while_it_is_started_does_not_hold_its_place(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting = asyncio.Event()

    async def start(*_command: str, **_options: Any) -> None:
        starting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    engine.act(ONE_MORE)
    await starting.wait()
    engine.act(ONE_LESS)
    await until(lambda: not engine.held())


async def test_a_replica_that_is_stopped_before_its_task_begins_does_not_hold_its_place(engine: ProcessEngine) -> None:
    engine.act(ONE_MORE)
    engine.act(ONE_LESS)
    await until(lambda: not engine.held())
