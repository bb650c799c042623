"""How calls are recorded, whoever records them; the runtime of CUDA is a fake."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch

from sixfold.core.runtime.cuda_graphs import capture_cuda_graph


class FakeStream:
    """Knows its device and whom it waited for."""

    def __init__(self, device: object) -> None:
        self.device = device
        self.waited_for: list[FakeStream] = []

    def wait_stream(self, other: FakeStream) -> None:
        self.waited_for.append(other)


class FakeGraph:
    """Stands for what is recorded."""

    def __init__(self) -> None:
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1


class FakeCuda:
    """Remembers what was recorded how.

    Attributes:
        active: The stream that is current, and whether it is recorded.
        recordings: Graph and further arguments of each.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = FakeStream("current")
        self.active: list[tuple[FakeStream | None, bool]] = []
        self.recordings: list[tuple[FakeGraph, dict[str, Any]]] = []
        self.num_pools = 0
        fakes: dict[str, Callable[..., Any]] = {
            "Stream": FakeStream,
            "CUDAGraph": FakeGraph,
            "current_stream": self.current_stream,
            "stream": self.inside,
            "graph": self.graph,
            "graph_pool_handle": self.new_pool,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def current_stream(self, device: torch.device) -> FakeStream:
        assert device.index == 1, "that of the model"
        return self.current

    @contextlib.contextmanager
    def inside(self, stream: FakeStream | None, *, recorded: bool = False) -> Generator[None]:
        before = list(self.active)
        self.active.append((stream, recorded))
        try:
            yield
        except RuntimeError:
            if recorded:  # as in torch: what fails in a recording leaves its stream the current one
                raise
            self.active = before
            raise
        self.active = before

    def graph(self, graph: FakeGraph, **more: Any) -> contextlib.AbstractContextManager[None]:
        self.recordings.append((graph, more))
        return self.inside(more.get("stream"), recorded=True)

    def new_pool(self) -> int:
        self.num_pools += 1
        return self.num_pools


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def record(cuda: FakeCuda, count: int) -> tuple[list[tuple[FakeStream | None, bool]], list[Callable[[], None]]]:
    """Where the calls ran, and their replays."""
    seen: list[tuple[FakeStream | None, bool]] = []
    capture = capture_cuda_graph(torch.device("cuda:1"))
    return seen, [capture(lambda: seen.append(cuda.active[-1])) for _ in range(count)]


def test_a_call_runs_once_before_it_is_recorded_both_on_a_stream_of_its_device(cuda: FakeCuda) -> None:
    seen, _ = record(cuda, 1)
    (first, is_recorded_first), (second, is_recorded_second) = seen
    assert not is_recorded_first and is_recorded_second
    assert first is second and first is not None and first.device == torch.device("cuda:1")
    assert first.waited_for == [cuda.current] and cuda.current.waited_for == [first]


def test_recordings_share_memory_and_stream(cuda: FakeCuda) -> None:
    record(cuda, 3)
    assert len({more["pool"] for _, more in cuda.recordings}) == 1
    assert len({id(more["stream"]) for _, more in cuda.recordings}) == 1  # else their memory can't be shared


def test_other_threads_may_use_the_device_while_one_records(cuda: FakeCuda) -> None:
    record(cuda, 1)
    assert cuda.recordings[0][1]["capture_error_mode"] == "thread_local"


def test_a_call_that_can_not_be_recorded_leaves_the_threads_stream_as_it_was(cuda: FakeCuda) -> None:
    def call() -> None:
        if cuda.active[-1][1]:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        capture_cuda_graph(torch.device("cuda:1"))(call)
    assert not cuda.active


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_recording_that_failed_is_over_for_the_allocator(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    ended: list[tuple[int, int]] = []

    def end(device_index: int, pool: int) -> None:
        ended.append((device_index, pool))
        if not goes_on:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr("torch._C._cuda_endAllocateToPool", end)
    record(cuda, 1)
    assert not ended, "torch does it for those that succeed"

    def call() -> None:
        if cuda.active[-1][1]:
            raise torch.OutOfMemoryError("no memory while it is recorded")

    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        capture_cuda_graph(torch.device("cuda:1"))(call)
    assert ended == [(1, 2)]


def test_a_replay_is_the_recorded_graphs(cuda: FakeCuda) -> None:
    _, replays = record(cuda, 2)
    replays[1]()
    assert [graph.num_replays for graph, _ in cuda.recordings] == [0, 1]
