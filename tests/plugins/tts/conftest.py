"""A Kokoro whose network is arithmetic, and a batch manager that runs it as a worker does."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from sixfold.core.batching.budget import Objective
from sixfold.core.batching.manager import BatchManager, Limits
from sixfold.core.batching.model import ModelInfo, StepModel
from sixfold.core.messages import Failed, Finished, Increment, Request
from sixfold.core.tokenization.pool import ThreadPiecePool
from sixfold.plugins.tts.kokoro import MAX_PHONEMES, KokoroModel
from sixfold.plugins.tts.lanes import Lanes
from sixfold.plugins.tts.options import KokoroOptions
from sixfold.plugins.tts.schema import SpeechInput, SpeechOutput
from sixfold.plugins.tts.voices import VoiceNames

LETTERS = "abcdefghijklmnopqrstuvwxyz .,!?"
VOCABULARY = {letter: index + 1 for index, letter in enumerate(LETTERS)}
TIMEOUT_S = 20.0
SAMPLES_A_LETTER = 10


class FakeRun:
    def __init__(self, network: FakeNetwork, ids: NDArray[np.int64], gain: float, speed: float) -> None:
        self._network = network
        self._ids = ids
        self._gain = gain
        self._speed = speed
        self.text = "".join(LETTERS[i - 1] for i in ids)
        self.stopped = threading.Event()

    def __call__(self) -> NDArray[np.float32]:
        self._network.note(self._network.started, self.text)
        gate = self._network.gates.get(self.text)
        assert gate is None or gate.wait(TIMEOUT_S)
        if self.stopped.is_set():
            raise RuntimeError("terminated")
        if "poison" in self.text:
            raise RuntimeError("the network failed")
        self._network.note(self._network.ended, self.text)
        samples = np.repeat(self._ids, max(1, int(SAMPLES_A_LETTER / self._speed))) * self._gain / 1000
        return samples.astype(np.float32)

    def stop(self) -> None:
        self._network.stopped.append(self.text)
        self.stopped.set()
        self._network.hold(self.text).set()


@dataclass
class FakeNetwork:
    """Each letter becomes ten samples of its number. ``gates`` holds a sentence back until its event is set."""

    gates: dict[str, threading.Event] = field(default_factory=dict[str, threading.Event])
    started: list[str] = field(default_factory=list[str])
    ended: list[str] = field(default_factory=list[str])
    stopped: list[str] = field(default_factory=list[str])
    changed: threading.Condition = field(default_factory=threading.Condition)

    def note(self, where: list[str], text: str) -> None:
        with self.changed:
            where.append(text)
            self.changed.notify_all()

    def wait_for(self, where: list[str], text: str) -> None:
        """Returns when a sentence has started or ended."""
        with self.changed:
            assert self.changed.wait_for(lambda: text in where, TIMEOUT_S), f"{text!r} never came"

    def hold(self, text: str) -> threading.Event:
        return self.gates.setdefault(text, threading.Event())

    def run(self, ids: NDArray[np.int64], style: NDArray[np.float32], speed: float) -> FakeRun:
        return FakeRun(self, ids, float(style[0]), speed)


class LetterPhonemizer:
    """Letters are their own phonemes."""

    def phonemes(self, text: str) -> str:
        found = "".join(letter for letter in text.lower() if letter in VOCABULARY)
        return found if any(map(str.isalpha, found)) else ""


@dataclass
class Answer:
    """What a request got."""

    sounds: list[bytes] = field(default_factory=list[bytes])
    end: Finished[Any] | Failed | None = None

    @property
    def pcm(self) -> bytes:
        return b"".join(self.sounds)


class Driver:
    """Runs a model under a real batch manager, with its own threads."""

    def __init__(self, model: StepModel[Any, Any, Any]) -> None:
        self._answers: dict[str, Answer] = {}
        self._done: dict[str, threading.Event] = {}
        self._first: dict[str, threading.Event] = {}
        self.order: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._pool: ThreadPiecePool[Any, Any] = ThreadPiecePool(
            lambda work: model.prepare(*work), num_workers=2, max_pending_pieces=10_000
        )
        self.manager = BatchManager(
            model,
            pool=self._pool,
            limits=Limits(),
            objective=Objective(),
            emit=self._take,
            clock=time.monotonic,
        )
        model.warm_up()
        self.manager.start()

    def _take(self, events: tuple[Any, ...]) -> None:
        for event in events:
            answer = self._answers[event.request_id]
            if isinstance(event, Increment):
                answer.sounds.append(cast("Increment[SpeechOutput]", event).output.pcm)
                self._first[event.request_id].set()
            else:
                answer.end = event
                self.order.put(event.request_id)
                self._first[event.request_id].set()
                self._done[event.request_id].set()

    def start(self, request_id: str, text: str, **wanted: Any) -> None:
        self._answers[request_id] = Answer()
        self._done[request_id] = threading.Event()
        self._first[request_id] = threading.Event()
        self.manager.submit(
            Request(request_id=request_id, input=SpeechInput(text=text, **wanted), arrived_s=time.monotonic())
        )

    def first(self, request_id: str) -> bytes:
        assert self._first[request_id].wait(TIMEOUT_S)
        return self._answers[request_id].pcm

    def result(self, request_id: str) -> Answer:
        assert self._done[request_id].wait(TIMEOUT_S), "the request did not end"
        return self._answers[request_id]

    def speak(self, text: str, **wanted: Any) -> Answer:
        name = f"alone-{len(self._answers)}"
        self.start(name, text, **wanted)
        return self.result(name)

    def close(self) -> None:
        self.manager.close()
        self._pool.close()


@pytest.fixture
def network() -> FakeNetwork:
    return FakeNetwork()


@pytest.fixture
def make_model(network: FakeNetwork) -> Callable[..., KokoroModel]:
    def make(*, num_lanes: int = 2, **options: Any) -> KokoroModel:
        styles = {name: np.full((MAX_PHONEMES, 256), gain, np.float32) for name, gain in (("anna", 1.0), ("bert", 3.0))}
        return KokoroModel(
            info=ModelInfo(),
            network=network,
            phonemizer=LetterPhonemizer(),
            vocabulary=VOCABULARY,
            styles=styles,
            voices=VoiceNames(tuple(styles), KokoroOptions(**options), "speak"),
            lanes=Lanes(num_lanes),
            max_input_characters=4096,
        )

    return make


@pytest.fixture
def drive() -> Iterator[Callable[[StepModel[Any, Any, Any]], Driver]]:
    drivers: list[Driver] = []

    def make(model: StepModel[Any, Any, Any]) -> Driver:
        drivers.append(Driver(model))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.close()


def sound_of(text: str, gain: float = 1.0, speed: float = 1.0) -> bytes:
    """What the fake network makes of a text."""
    ids = np.array([VOCABULARY[letter] for letter in text.lower()])
    samples = np.repeat(ids, max(1, int(SAMPLES_A_LETTER / speed))) * gain / 1000
    rounded: NDArray[np.int16] = np.rint(samples.astype(np.float32) * 32767.0).astype("<i2")
    return rounded.tobytes()
