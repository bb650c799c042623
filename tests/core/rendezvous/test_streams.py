"""On a GPU pipelines compute in streams of their threads: what crosses to the stream of the steps, and back, is waited for.

The streams are fakes that note what waits for what; `bench/gpu/image.py --part equal` compares pictures on a GPU.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sixfold.core.rendezvous import model as model_module
from sixfold.core.rendezvous import streams
from sixfold.core.rendezvous.calls import CallRules, ModuleCall, TensorDigests, capture
from sixfold.core.rendezvous.deferred import DeferredCalls
from sixfold.core.rendezvous.model import TorchPipelineModel
from sixfold.core.rendezvous.streams import hand_over
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


def always(stream: FakeStream) -> Callable[[torch.device], FakeStream]:
    """The current stream of each device."""
    return lambda _device: stream


class Doubling(torch.nn.Module):
    """Doubles numbers, and says so."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def forward(self, hidden: torch.Tensor, scale: torch.Tensor | None = None) -> tuple[torch.Tensor]:
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
    monkeypatch.setattr(model_module, "current_stream", always(steps))
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
    monkeypatch.setattr(model_module, "current_stream", always(steps))
    engine.forward(calls_from(Doubling(log), [steps]))  # as while the model loads
    assert log == [("forward", "1")]


def test_calls_on_a_processor_have_no_stream(engine: TorchPipelineModel[Any, Any]) -> None:
    log: Log = []
    call = capture(Doubling(log), (torch.ones(1, 4),), {}, rules=CallRules(), digests=TensorDigests())
    assert call.stream is None
    engine.forward([call])
    engine.begin_thread()
    assert log == [("forward", "1")]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Streams without a GPU: what was made, and what each thread has made current."""
    log: Log = []
    names = itertools.count(1)

    def new_stream(device: torch.device, *, priority: int) -> FakeStream:
        assert (device, priority) == (GPU, -1)
        return FakeStream(f"stream {next(names)}", log)

    monkeypatch.setattr(streams, "new_stream", new_stream)

    def set_stream(stream: FakeStream) -> None:
        log.append(("current", stream.name))

    monkeypatch.setattr(torch.cuda, "default_stream", always(FakeStream("steps", log)))
    monkeypatch.setattr(torch.cuda, "set_stream", set_stream)
    return log


class Thread:
    """Lives until it is told to end."""

    def __init__(self, use: Callable[[], None], num_times: int = 1) -> None:
        self._end = threading.Event()
        used = threading.Event()

        def work() -> None:
            for _ in range(num_times):
                use()
            used.set()
            self._end.wait(20.0)

        self._thread = threading.Thread(target=work)
        self._thread.start()
        assert used.wait(20.0)

    def end(self) -> None:
        self._end.set()
        self._thread.join(20.0)


def test_each_thread_has_a_stream_and_keeps_it(cuda: Log) -> None:
    own = streams.ThreadStreams(GPU)
    threads = [Thread(own.use, num_times=2) for _ in range(2)]
    for thread in threads:
        thread.end()
    one, two = "stream 1", "stream 2"
    loaded = [(one, "waits for", "steps"), (two, "waits for", "steps")]  # the model was loaded in that stream
    assert cuda == [loaded[0], ("current", one), ("current", one), loaded[1], ("current", two), ("current", two)]


def test_threads_beyond_the_bound_are_in_the_stream_of_the_steps(cuda: Log) -> None:
    own = streams.ThreadStreams(GPU)
    threads = [Thread(own.use) for _ in range(streams.MAX_THREAD_STREAMS + 2)]
    used = [entry[1] for entry in cuda if entry[0] == "current"]
    assert used == [f"stream {index + 1}" for index in range(streams.MAX_THREAD_STREAMS)] + ["steps", "steps"]
    threads[4].end()
    Thread(own.use).end()
    assert cuda[-1] == ("current", "stream 5"), "a thread that ends gives its stream back"
    for thread in threads:
        thread.end()


def test_a_pipeline_is_in_the_stream_of_its_thread(cuda: Log) -> None:
    model = PipelineModel(SimpleNamespace(components={}), {}, device="cuda:0")
    Thread(model.begin_thread).end()
    assert ("current", "stream 1") in cuda
    model.close()


def on_gpu(log: Log) -> Any:
    """A tensor that says that it is on a GPU, and for which streams its memory is kept."""

    def keep_for(_tensor: torch.Tensor, stream: FakeStream) -> None:
        log.append(("kept for", stream.name))

    shown = {"is_cuda": True, "device": GPU, "record_stream": keep_for}
    return torch.ones(1, 4).as_subclass(type("GpuTensor", (torch.Tensor,), shown))


class Distribution:
    """An answer of a library's that is no container."""

    def __init__(self, mean: torch.Tensor) -> None:
        self.mean = mean


def test_memory_that_crosses_is_kept_for_the_other_stream() -> None:
    log: Log = []
    one, two = FakeStream("one", log), FakeStream("two", log)
    hand_over({"latents": [on_gpu(log)], "latent_dist": Distribution(on_gpu(log))}, source=one, target=two)
    assert log == [("two", "waits for", "one"), ("kept for", "two"), ("kept for", "two")]


def test_a_call_knows_the_stream_of_its_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    log: Log = []
    own = FakeStream("own", log)
    monkeypatch.setattr(torch.cuda, "current_stream", always(own))
    digests = TensorDigests()
    # the first argument alone does not tell
    call = capture(Doubling(log), (torch.ones(1, 4), on_gpu(log)), {}, rules=CallRules(), digests=digests)
    assert call.stream is own
    together: list[ModuleCall] = []

    def compute(call: ModuleCall) -> Any:
        together.append(call)
        return (torch.ones(call.rows, 4),)

    deferred = DeferredCalls(compute)
    same = dataclasses.replace(call, arguments={"hidden": torch.ones(1, 4)})
    answers = [deferred.add(same) for _ in range(2)]
    assert len(answers[1][0]) == 1
    assert [(each.rows, each.stream) for each in together] == [(2, own)]
