"""On a GPU pipelines compute in streams of their threads: what crosses to the stream of the steps, and back, is waited for.

The streams are fakes that note what waits for what; `bench/gpu/image.py --part equal` compares pictures on a GPU.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sixfold.core.rendezvous import model as model_module
from sixfold.core.rendezvous import streams
from sixfold.core.rendezvous.calls import CallRules, ModuleCall, TensorDigests, capture
from sixfold.core.rendezvous.model import TorchPipelineModel
from tests.core.rendezvous.harness import PipelineModel

GPU = torch.device("cuda:0")
Log = list[tuple[str, ...]]


class FakeStream:
    """Notes in a log, which all share, for whom it waits."""

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        self._log = log

    def wait_stream(self, other: FakeStream) -> None:
        self._log.append((self.name, "waits for", other.name))


class Doubling(torch.nn.Module):
    """Doubles numbers, and says so."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor]:
        self._log.append(("forward", str(len(hidden))))
        return (2 * hidden,)


def calls_from(module: torch.nn.Module, callers: Sequence[FakeStream]) -> list[ModuleCall]:
    digests = TensorDigests()
    found = [capture(module, (torch.ones(1, 4),), {}, rules=CallRules(), digests=digests) for _ in callers]
    return [dataclasses.replace(call, stream=stream) for call, stream in zip(found, callers, strict=True)]


@pytest.fixture
def engine() -> Any:
    model = PipelineModel(SimpleNamespace(components={}), {})
    yield model
    model.close()


def test_the_steps_wait_for_arguments_and_pipelines_for_their_answers(
    engine: TorchPipelineModel[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = []
    steps, one, two = (FakeStream(name, log) for name in ("steps", "one", "two"))
    monkeypatch.setattr(model_module, "current_stream", lambda _device: steps)
    calls = calls_from(Doubling(log), [one, two])
    engine.forward(calls)  # is compared with each alone
    log.clear()
    answers = engine.forward(calls)
    assert log == [
        ("steps", "waits for", "one"),
        ("steps", "waits for", "two"),
        ("forward", "2"),
        ("one", "waits for", "steps"),
        ("two", "waits for", "steps"),
    ]
    assert [answer[0].tolist() for answer in answers] == [[[2.0] * 4]] * 2


def test_a_call_from_the_stream_of_the_steps_waits_for_nothing(
    engine: TorchPipelineModel[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = []
    steps = FakeStream("steps", log)
    monkeypatch.setattr(model_module, "current_stream", lambda _device: steps)
    engine.forward(calls_from(Doubling(log), [steps]))  # as while the model loads
    assert log == [("forward", "1")]


def test_calls_on_a_processor_have_no_stream(engine: TorchPipelineModel[Any, Any]) -> None:
    log: Log = []
    call = capture(Doubling(log), (torch.ones(1, 4),), {}, rules=CallRules(), digests=TensorDigests())
    assert call.stream is None
    engine.forward([call])
    engine.begin_thread()
    assert log == [("forward", "1")]


def in_threads(count: int, use: Callable[[], None]) -> None:
    """Runs it in so many threads that live at the same time, one after another."""
    done = threading.Event()
    threads: list[threading.Thread] = []
    for _ in range(count):
        used = threading.Event()

        def work(used: threading.Event = used) -> None:
            use()
            used.set()
            done.wait(20.0)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        assert used.wait(20.0)
    done.set()
    for thread in threads:
        thread.join(20.0)


def test_each_thread_has_a_stream_of_its_own_and_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    current: list[object] = []

    def new_stream(device: torch.device, *, priority: int) -> object:
        assert device == GPU
        made.append(priority)
        return object()

    monkeypatch.setattr(streams, "new_stream", new_stream)
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    own = streams.ThreadStreams(GPU)

    def use_twice() -> None:
        own.use()
        own.use()

    in_threads(18, use_twice)
    assert current[::2] == current[1::2]
    assert made == [-1] * 16, "they go before the steps, and their number is bounded: memory is kept for each"
    assert len(set(current[:32])) == 16
    assert current[32:] == [current[0], current[0], current[2], current[2]]
