"""Threads that compute, and events, belong to the GPU of their model; the runtime of CUDA is a fake."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from sixfold.core.rendezvous.streams import Pace
from sixfold.core.runtime.devices import use_device
from sixfold.core.runtime.events import made_beside, recorded_event


class FakeEvent:
    """Remembers where it was recorded."""

    def __init__(self) -> None:
        self.recorded_on: list[object] = []
        self.num_waits = 0

    def record(self, stream: object = "the thread's current stream, of whatever device") -> None:
        self.recorded_on.append(stream)

    def synchronize(self) -> None:
        self.num_waits += 1


def stream_of(device: torch.device) -> str:
    return f"the stream of {device}"


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[FakeEvent]:
    """All events that are made, in order."""
    made: list[FakeEvent] = []

    def new_event() -> FakeEvent:
        made.append(FakeEvent())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Event", new_event)
    monkeypatch.setattr(torch.cuda, "current_stream", stream_of)
    return made


def test_an_event_is_recorded_on_the_stream_of_its_device(events: list[FakeEvent]) -> None:
    assert recorded_event(torch.device("cuda:1")) is events[0]
    assert events[0].recorded_on == ["the stream of cuda:1"]


def test_what_is_made_beside_the_steps_is_done_and_not_given_away_while_one_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def synchronize(self) -> None:
            told.append("done")

    class Made:
        def record_stream(self, stream: str) -> None:
            told.append(f"kept for {stream}")

    @contextmanager
    def on_stream(stream: Stream) -> Generator[None]:
        told.append(f"beside the steps of {stream.device}")
        yield
        told.append("among the steps")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", stream_of)
    made: Any = Made()
    device = torch.device("cuda:7")  # streams are kept by device
    assert made_beside(device, lambda: made) is made
    assert told == ["beside the steps of cuda:7", "among the steps", "done", "kept for the stream of cuda:7"]


def test_on_a_cpu_there_is_nothing_beside_the_steps() -> None:
    ones = torch.ones(2)
    assert made_beside(torch.device("cpu"), lambda: ones) is ones


def test_the_host_keeps_pace_with_the_device_of_the_model(events: list[FakeEvent]) -> None:
    pace = Pace(torch.device("cuda:1"))
    for _ in range(2):
        pace.wait()
        pace.mark()
    pace.wait()
    assert [event.recorded_on for event in events] == [["the stream of cuda:1"]] * 2
    assert [event.num_waits for event in events] == [1, 0]


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cuda:1", [1]), ("cuda:0", []), ("cpu", []), ("cuda:2", [])],
    ids=["another GPU", "the first, which threads have anyway", "no GPU", "one that is not there: the loader says so"],
)
def test_a_thread_takes_the_gpu_of_its_model(
    monkeypatch: pytest.MonkeyPatch, device: str, expected: list[object]
) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    use_device(device)
    assert taken == expected
