"""Real speech, files made of it, a scripted Whisper, and a driver that runs requests through the batch manager."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from sixfold.core.batching.model import ModelInfo
from sixfold.core.config import default_cache_dir, load_config
from sixfold.core.errors import RequestError
from sixfold.core.messages import Event, Failed, Finished, Increment, Request
from sixfold.core.plugins import load_plugins
from sixfold.core.registry import ResolvedModel, resolve_entry
from sixfold.core.runtime.local_replica import LocalReplica
from sixfold.plugins.asr.audio import decode_file
from sixfold.plugins.asr.backend import Alignment, Hypothesis, Mel
from sixfold.plugins.asr.schema import AsrInput, TranscribeInput, WindowDone
from sixfold.plugins.asr.whisper import WhisperModel

ROOT = Path(__file__).resolve().parents[3]
CLIPS = ROOT / "tests" / "data" / "librivox"


@pytest.fixture(scope="session")
def clips() -> dict[str, bytes]:
    """The five LibriVox clips as FLAC files, by name."""
    return {path.stem: path.read_bytes() for path in sorted(CLIPS.glob("*.flac"))}


@pytest.fixture(scope="session")
def spoken() -> dict[str, str]:
    """What is said in each clip."""
    rows = (line.split("\t") for line in (CLIPS / "transcription.tsv").read_text().splitlines())
    return {name: text for name, text in rows}


@pytest.fixture(scope="session")
def samples(clips: dict[str, bytes]) -> dict[str, NDArray[np.int16]]:
    return {name: np.concatenate(list(decode_file(data, max_duration_s=60))) for name, data in clips.items()}


def encode_file(
    samples: NDArray[np.int16], *, container: str, codec: str, rate_hz: int = 16_000, layout: str = "mono"
) -> bytes:
    """A file in any container that PyAV writes."""
    out = io.BytesIO()
    with av.open(out, mode="w", format=container) as opened:
        file: Any = opened
        stream: Any = file.add_stream(codec, rate=rate_hz, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = 16_000
        for part in av.AudioResampler(format=stream.format, layout=layout, rate=rate_hz).resample(frame):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return out.getvalue()


@pytest.fixture
def make_file() -> Callable[..., bytes]:
    return encode_file


# A scripted Whisper: its tokens are words, its answers are given by the test.

WORDS = [f"Ġw{n}" for n in range(50)]
SPECIAL = [
    *("endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startoflm", "startofprev"),
    *("nospeech", "notimestamps"),
]


def fake_tokenizer() -> Any:
    names = [*WORDS, "<unk>", *(f"<|{name}|>" for name in SPECIAL), *(f"<|{n * 0.02:.2f}|>" for n in range(1501))]
    tokenizer: Any = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names[len(WORDS) + 1 :]])
    return tokenizer


class FakeWhisper:
    """A `WhisperBackend` whose rows are the means of their samples, so that a test can tell windows apart.

    Attributes:
        answers: By (row, temperature); `hear` is asked for what is not here.
        steps: What was called, with the number of rows.
        poisoned: Rows that make `generate` raise.
    """

    is_multilingual = True
    max_length_tokens = 448

    def __init__(self) -> None:
        self.tokenizer: Any = fake_tokenizer()
        self.answers: dict[tuple[float, float], Hypothesis] = {}
        self.steps: list[tuple[str, int]] = []
        self.prompts: list[tuple[int, ...]] = []
        self.languages: dict[float, str] = {}
        self.poisoned: set[float] = set()
        self.gate: Callable[[], None] = lambda: None

    def token(self, name: str) -> int:
        found: int = self.tokenizer.token_to_id(name)
        return found

    def heard(self, *words: int, stop_s: float = 1.0, logprob: float = -0.2, no_speech: float = 0.0) -> Hypothesis:
        begin, end = self.token("<|0.00|>"), self.token(f"<|{stop_s:.2f}|>")
        return Hypothesis((begin, *words, end), logprob, no_speech)

    def features(self, samples: NDArray[np.float32]) -> Mel:
        return np.full((1, len(samples) // 160), round(float(np.abs(samples).mean()), 4), dtype=np.float32)

    def encode(self, mels: Sequence[Mel]) -> list[Any]:
        self.steps.append(("encode", len(mels)))
        return [round(float(mel[0, 0]), 4) for mel in mels]

    def detect_language(self, rows: Sequence[Any]) -> list[tuple[str, float]]:
        self.steps.append(("detect", len(rows)))
        return [(self.languages.get(row, "en"), 0.9) for row in rows]

    def generate(
        self, rows: Sequence[Any], prompts: Sequence[Sequence[int]], *, temperature: float, suppressed: Sequence[int]
    ) -> list[Hypothesis]:
        self.gate()
        self.steps.append((f"generate {temperature:g}", len(rows)))
        assert len({len(prompt) for prompt in prompts}) == 1
        self.prompts += [tuple(prompt) for prompt in prompts]
        if self.poisoned & set(rows):
            raise RuntimeError("poisoned")
        return [self.answers.get((row, temperature), self.heard(int(row * 100) % 50)) for row in rows]

    def align(
        self, rows: Sequence[Any], start: Sequence[int], texts: Sequence[Sequence[int]], num_frames: Sequence[int]
    ) -> list[Alignment]:
        self.steps.append(("align", len(rows)))
        return [Alignment(tuple(0.1 * i for i in range(len(text) + 1)), (0.5,) * len(text)) for text in texts]

    def close(self) -> None:
        self.steps.append(("close", 0))


@pytest.fixture
def fake_whisper() -> FakeWhisper:
    return FakeWhisper()


@pytest.fixture
def fake_model(fake_whisper: FakeWhisper) -> WhisperModel:
    return WhisperModel(fake_whisper, info=ModelInfo(), max_audio_s=3600.0, speakers=None)


class Driver:
    """Runs requests on a model through a real batch manager."""

    def __init__(self, replica: LocalReplica) -> None:
        self.replica = replica
        self._number = 0

    async def events(self, wanted: AsrInput) -> list[Event]:
        self._number += 1
        request = Request(request_id=str(self._number), input=wanted, arrived_s=time.monotonic())
        stream = self.replica.submit(request)
        found: list[Event] = []
        while events := await stream.next_events():
            found += events
        return found

    async def result(self, wanted: AsrInput) -> Any:
        """The result, or the error as an exception."""
        last = (await self.events(wanted))[-1]
        if isinstance(last, Failed):
            raise last.error
        assert isinstance(last, Finished)
        return last.result

    async def windows(self, wanted: TranscribeInput) -> list[WindowDone]:
        outputs: list[Any] = [event.output for event in await self.events(wanted) if isinstance(event, Increment)]
        return outputs

    async def results(self, wanted: Sequence[AsrInput]) -> list[Any]:
        return list(await asyncio.gather(*map(self.result, wanted), return_exceptions=True))


@pytest.fixture
async def drive() -> AsyncIterator[Callable[[Any], Driver]]:
    drivers: list[Driver] = []

    def start(model: Any) -> Driver:
        drivers.append(Driver(LocalReplica(model)))
        return drivers[-1]

    yield start
    for driver in drivers:
        await driver.replica.close()


@pytest.fixture(scope="session")
def speech_entry() -> ResolvedModel:
    """The demo's speech model, pulled."""
    settings = load_config(ROOT / "examples" / "demo.yaml")
    return resolve_entry(settings.models["hear"], load_plugins(), default_cache_dir(), lambda _w, _d, _t: None)


def refused(error: object, param: str) -> bool:
    """Whether it is a 400 that names the parameter."""
    return isinstance(error, RequestError) and error.status == 400 and error.param == param
