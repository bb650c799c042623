"""What `sixfold up` says to further gateways about a rollout: each change once, and what could not be said later."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from sixfold.scaling.registry import Division, RegistryUnavailable, SqliteRegistry
from sixfold.scaling.up.divisions import DivisionTeller

CHAT = Division(service="chat", names=("chat",), old="1", new="2", share=0.05)


class Counting(SqliteRegistry):
    """A registry that may be lost, and counts what is said to it."""

    num_said = 0
    is_broken = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.answers = threading.Event()
        self.answers.set()

    def divide(self, service: str, division: Division | None) -> None:
        assert self.answers.wait(30.0)
        if self.is_broken:
            raise RegistryUnavailable("the disk is gone")
        self.num_said += 1
        super().divide(service, division)


async def test_each_change_is_said_once_and_what_an_earlier_process_left_is_taken_away(tmp_path: Path) -> None:
    registry = Counting(tmp_path / "replicas.db")
    registry.divide("chat", CHAT)
    registry.num_said = 0
    teller = DivisionTeller(registry)
    await teller.tell(("chat", "notes"), {})
    assert registry.divisions() == []
    for _ in range(3):
        await teller.tell(("chat", "notes"), {"chat": CHAT})
    assert registry.divisions() == [CHAT]
    assert registry.num_said == 3
    await teller.tell(("notes",), {})  # the model is gone, and its rollout with it
    assert registry.divisions() == []


async def test_what_a_lost_registry_was_not_told_it_is_told_once_it_is_back(tmp_path: Path) -> None:
    registry = Counting(tmp_path / "replicas.db")
    teller = DivisionTeller(registry)
    await teller.tell(("chat",), {"chat": CHAT})
    registry.is_broken = True
    more = msgspec.structs.replace(CHAT, share=0.25)
    await teller.tell(("chat",), {"chat": more})
    registry.is_broken = False
    assert registry.divisions() == [CHAT]
    await teller.tell(("chat",), {"chat": more})
    assert registry.divisions() == [more]


async def test_a_registry_that_does_not_answer_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sixfold.scaling.up.divisions._WAIT_S", 0.01)
    registry = Counting(tmp_path / "replicas.db")
    registry.answers.clear()
    teller = DivisionTeller(registry)
    for _ in range(3):
        await teller.tell(("chat", "notes"), {"chat": CHAT})
    assert registry.num_said == 0
    registry.answers.set()
    monkeypatch.setattr("sixfold.scaling.up.divisions._WAIT_S", 30.0)
    await teller.tell(("chat", "notes"), {"chat": CHAT})
    assert registry.divisions() == [CHAT]
    assert registry.num_said == 2  # each once, although it was asked for three times
