"""What runs on GPUs gives the library's vectors: the same code here, its kernels by Triton's interpreter."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="the kernels for GPUs need Triton")

import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from sixfold.core.batching.model import DeviceLost, Granted
from sixfold.core.messages import Request
from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.plugins.embedding import gpu_layers
from sixfold.plugins.embedding.encoder import Encoder
from sixfold.plugins.embedding.flat_forward import graph_sizes
from sixfold.plugins.embedding.flights import Flights
from sixfold.plugins.embedding.loader import build
from sixfold.plugins.embedding.model import EmbeddingModel
from sixfold.plugins.embedding.pipeline import Pipeline
from sixfold.plugins.embedding.schema import EmbeddingInput

TEXTS = ["w1 w2 w3 w4 w5", "w7", "w1 <pad> w9", "w8 w7 w6 w5 w4 w3 w2 w1 w0 w10 w11"]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def always(_device: torch.device) -> bool:
        return True

    monkeypatch.setattr("sixfold.plugins.embedding.loader.has_kernels", always)


class Recorder:
    """In place of CUDA graphs: a replay runs the recorded call again; counts them."""

    def __init__(self) -> None:
        self.num_replays = 0

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        call()

        def replay() -> None:
            self.num_replays += 1
            call()

        return replay


def library(path: Path, texts: list[str]) -> Any:
    model: Any = SentenceTransformer(str(path), device="cpu")
    return model.encode(texts, show_progress_bar=False)


def tokens(pipeline: Pipeline, texts: list[str]) -> list[NDArray[np.int64]]:
    return pipeline.tokenizer(None).encode_texts(texts, first_index=0, truncate_tokens=None)


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [("xlm-roberta", "fused"), ("qwen3", "fused"), ("modernbert", "packed")],
)
@pytest.mark.usefixtures("as_on_a_gpu")
def test_vectors_equal_the_librarys_computed_and_replayed(architecture: str, mode: str, save_model: Any) -> None:
    path = save_model(architecture, pooling="lasttoken" if architecture == "qwen3" else "mean")
    pipeline = Pipeline(path, "cpu", torch.float32)
    sequences, expected = tokens(pipeline, TEXTS), library(path, TEXTS)
    encoder = build(pipeline, mode)
    fused = (gpu_layers.GpuEncoderLayer, gpu_layers.GpuDecoderLayer)
    assert any(isinstance(module, fused) for module in pipeline.transformer.modules()) == (mode == "fused")
    np.testing.assert_allclose(encoder.embed(sequences, [0] * 4), expected, atol=1e-5)

    recorder = Recorder()
    encoder.record(64, recorder.capture)

    np.testing.assert_allclose(encoder.embed(sequences, [0] * 4), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(sequences[:1], [0]), expected[:1], atol=1e-5)
    assert recorder.num_replays == 2
    assert encoder.num_padding == (64 - sum(map(len, sequences))) + (64 - len(sequences[0]))
    encoder.close()


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_step_above_the_largest_graph_is_computed(save_model: Any) -> None:
    path = save_model("bert")
    pipeline = Pipeline(path, "cpu", torch.float32)
    sequences, expected = tokens(pipeline, TEXTS), library(path, TEXTS)
    encoder, recorder = build(pipeline, "fused"), Recorder()
    encoder.record(16, recorder.capture)
    np.testing.assert_allclose(encoder.embed(sequences, [0] * 4), expected, atol=1e-5)
    assert recorder.num_replays == 0
    encoder.close()


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_model_that_cannot_be_recorded_is_computed(save_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_call: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    path = save_model("bert")
    pipeline = Pipeline(path, "cpu", torch.float32)
    sequences, expected = tokens(pipeline, TEXTS), library(path, TEXTS)
    encoder = build(pipeline, "fused")
    capture: Capture = refuse
    encoder.record(64, capture)
    assert "not recorded" in caplog.text
    np.testing.assert_allclose(encoder.embed(sequences, [0] * 4), expected, atol=1e-5)
    encoder.close()


@given(st.integers(1, 70_000))
def test_a_step_is_padded_by_few_rows(max_tokens: int) -> None:
    sizes = graph_sizes(max_tokens)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_tokens
    for small, large in itertools.pairwise(sizes):
        assert large - small <= max(64, small // 8)


class ByHand:
    """Vectors that arrive when told."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors
        self._arrived = threading.Event()

    @property
    def is_there(self) -> bool:
        return self._arrived.is_set()

    def arrive(self) -> None:
        self._arrived.set()

    def block(self) -> None:
        assert self._arrived.wait(20)

    def wait(self) -> NDArray[np.float32]:
        self.block()
        return self._vectors


def test_flights_land_in_order_and_wake_the_loop() -> None:
    woken = threading.Semaphore(0)
    flights: Flights[str] = Flights(woken.release)
    first, second = ByHand(np.zeros((1, 2), np.float32)), ByHand(np.ones((2, 2), np.float32))
    flights.start(["a"], first)
    flights.start(["b", "c"], second)
    second.arrive()
    assert flights.landed() == []  # nothing overtakes
    first.arrive()
    assert woken.acquire(timeout=20)
    assert woken.acquire(timeout=20)
    assert [flight.sequences for flight in flights.landed()] == [("a",), ("b", "c")]
    flights.close()


def test_a_third_flight_waits_for_the_first() -> None:
    flights: Flights[int] = Flights(lambda: None)
    vectors = [ByHand(np.zeros((1, 2), np.float32)) for _ in range(3)]
    for number in range(2):
        flights.start([number], vectors[number])
    starting = threading.Thread(target=flights.start, args=([2], vectors[2]))
    starting.start()
    vectors[0].arrive()
    starting.join(20)
    assert not starting.is_alive()
    assert [flight.sequences for flight in flights.landed()] == [(0,)]
    for each in vectors[1:]:
        each.arrive()
    flights.close()


def test_a_step_that_flies_is_answered_by_collect(bert_path: Path, load_folder: Any) -> None:
    model: EmbeddingModel = load_folder(bert_path)
    model.flies = True
    model.attach(lambda: None)
    request: Request[Any] = Request(request_id="r", input=EmbeddingInput(texts=tuple(TEXTS[:2])), arrived_s=0.0)
    sequences = list(model.prepare(request, model.split(request)[0]))
    started = model.step([Granted(sequence, 9) for sequence in sequences])
    assert not any(outcome.done for outcome in started)
    assert [model.cost(sequence) for sequence in sequences] == [None, None]

    landed = list(model.collect())

    assert [sequence for sequence, _outcome in landed] == sequences
    assert all(outcome.done and outcome.error is None for _sequence, outcome in landed)
    found: Any = model.finish(request, sequences).result
    vectors = np.frombuffer(found.vectors, "<f4").reshape(2, -1)
    np.testing.assert_allclose(vectors, library(bert_path, TEXTS[:2]), atol=1e-5)
    model.close()


def test_a_text_that_shared_a_tile_with_a_broken_one_is_computed_again(
    bert_path: Path, load_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: EmbeddingModel = load_folder(bert_path)
    model.flies = True
    model.attach(lambda: None)
    request: Request[Any] = Request(request_id="r", input=EmbeddingInput(texts=tuple(TEXTS[:2])), arrived_s=0.0)
    sequences = list(model.prepare(request, model.split(request)[0]))
    broken = ByHand(np.full((2, 32), np.nan, np.float32))
    broken.arrive()

    def begin(*_arguments: object) -> ByHand:
        return broken

    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "begin", begin)
        model.step([Granted(sequence, 9) for sequence in sequences])

    landed = list(model.collect())

    assert [outcome.error for _sequence, outcome in landed] == [None, None]
    vectors = np.stack([each.vector for each in sequences if each.vector is not None])
    np.testing.assert_allclose(vectors, library(bert_path, TEXTS[:2]), atol=1e-5)
    model.close()


class Dead(ByHand):
    """Vectors of a step that killed the device."""

    def __init__(self) -> None:
        super().__init__(np.zeros((1, 2), np.float32))

    @property
    def is_there(self) -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def block(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_flight_that_killed_the_device_is_not_blamed_on_the_next_step() -> None:
    flights: Flights[int] = Flights(lambda: None)
    flights.start([0], Dead())
    with pytest.raises(DeviceLost, match="illegal memory access"):
        flights.landed()
    with pytest.raises(DeviceLost, match="illegal memory access"):
        flights.check()
    flights.start([1], Dead())
    with pytest.raises(DeviceLost, match="illegal memory access"):
        flights.start([2], Dead())
    flights.close()


class Dying(Dead):
    """Arrives, and can't be read."""

    @property
    def is_there(self) -> bool:
        return True


def test_a_model_whose_device_died_under_a_flight_says_so(
    bert_path: Path, load_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: EmbeddingModel = load_folder(bert_path)
    model.flies = True
    model.attach(lambda: None)
    request: Request[Any] = Request(request_id="r", input=EmbeddingInput(texts=tuple(TEXTS[:2])), arrived_s=0.0)
    sequences = [Granted(sequence, 9) for sequence in model.prepare(request, model.split(request)[0])]

    def refuse(*_arguments: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def begin(*_arguments: object) -> ByHand:
        return Dying()

    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "begin", refuse)
        with pytest.raises(RuntimeError, match="illegal"):  # nothing else is under way: the step itself is to blame
            model.step(sequences[:1])
        patched.setattr(Encoder, "begin", begin)
        model.step(sequences[:1])
        patched.setattr(Encoder, "begin", refuse)
        with pytest.raises(DeviceLost):
            model.step(sequences[1:])
    with pytest.raises(DeviceLost):
        model.collect()
    model.close()
