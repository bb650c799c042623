"""The demo's Whisper on real speech: mixed requests equal themselves alone, and equal faster-whisper."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sixfold.core.family import LoadContext
from sixfold.core.registry import ResolvedModel
from sixfold.plugins.asr.loader import load
from sixfold.plugins.asr.schema import KnownSpeaker, TranscribeInput, Transcript
from sixfold.plugins.asr.whisper import WhisperModel

pytestmark = pytest.mark.models

Drive = Callable[[Any], Any]


@pytest.fixture
def whisper(speech_entry: ResolvedModel) -> WhisperModel:
    return load(
        LoadContext(
            model_name="speech", path=speech_entry.path, device="cpu", num_threads=2, options=speech_entry.options
        )
    )


def pcm(*parts: NDArray[np.int16], pause_s: float = 0.75) -> bytes:
    pause = np.zeros(int(16_000 * pause_s), np.int16)
    return np.concatenate([piece for part in parts for piece in (part, pause)]).tobytes()


@pytest.mark.slow  # the same over HTTP is in test_transcription.py
async def test_eight_mixed_requests_at_once_equal_each_alone(
    whisper: WhisperModel, drive: Drive, clips: dict[str, bytes], samples: dict[str, NDArray[np.int16]]
) -> None:
    long = pcm(*samples.values(), *list(samples.values())[:2], pause_s=1.0)
    wanted = [
        TranscribeInput(audio=clips["0870"]),
        TranscribeInput(audio=clips["0880"], wants_words=True),
        TranscribeInput(audio=clips["0890"], language="en", prompt="A novel by Jane Austen."),
        TranscribeInput(audio=clips["0920"], language="en", wants_logprobs=True),
        TranscribeInput(audio=clips["0930"], language="de", task="translate"),
        TranscribeInput(audio=long, pcm_hz=16_000, wants_words=True),
        TranscribeInput(audio=long, pcm_hz=16_000, diarizes=True),
        TranscribeInput(audio=bytes(64_000), pcm_hz=16_000),
    ]
    driver = drive(whisper)
    alone: list[Transcript] = [await driver.result(one) for one in wanted]
    together: list[Transcript] = await driver.results(wanted)
    for one, other in zip(alone, together, strict=True):
        assert other.text == one.text
        assert other.language == one.language
        assert [(s.start_s, s.end_s, s.speaker) for s in other.segments] == [
            (s.start_s, s.end_s, s.speaker) for s in one.segments
        ]
        for mine, its in zip(other.segments, one.segments, strict=True):
            assert mine.avg_logprob == pytest.approx(its.avg_logprob, abs=1e-4)
            assert [w.text for w in mine.words] == [w.text for w in its.words]
            assert [w.start_s for w in mine.words] == pytest.approx([w.start_s for w in its.words], abs=0.02)
    assert driver.replica.snapshot.metrics["max_batch_sequences"] >= 3


async def test_texts_times_and_words_equal_faster_whispers(
    whisper: WhisperModel, drive: Drive, speech_entry: ResolvedModel, clips: dict[str, bytes],
    samples: dict[str, NDArray[np.int16]],
) -> None:  # fmt: skip
    library: Any = importlib.import_module("faster_whisper").WhisperModel(
        str(speech_entry.path), device="cpu", compute_type="int8", cpu_threads=2
    )
    driver = drive(whisper)
    for name, data in clips.items():
        mine: Transcript = await driver.result(TranscribeInput(audio=data, wants_words=True))
        found, info = library.transcribe(
            samples[name].astype(np.float32) / 32768, condition_on_previous_text=False, word_timestamps=True
        )
        its = list(found)
        assert mine.text == "".join(segment.text for segment in its).strip()
        assert mine.language == info.language
        words = [word for segment in mine.segments for word in segment.words]
        expected = [word for segment in its for word in segment.words]
        assert [word.text for word in words] == [word.word for word in expected]
        assert np.abs(np.array([w.start_s for w in words]) - [w.start for w in expected]).max() <= 0.3
        assert np.median(np.abs(np.array([w.start_s for w in words]) - [w.start for w in expected])) <= 0.04


async def test_speakers_are_told_apart_and_known_ones_keep_their_name(
    whisper: WhisperModel, drive: Drive, clips: dict[str, bytes], samples: dict[str, NDArray[np.int16]],
) -> None:  # fmt: skip
    # Another voice, made of the first by playing it a third faster: pitch and formants move as between two people.
    times = np.arange(0, len(samples["0890"]) - 1, 1.35)
    other = np.interp(times, np.arange(len(samples["0890"])), samples["0890"]).astype(np.int16)
    audio = pcm(samples["0870"], other, samples["0920"], pause_s=1.0)
    known = (KnownSpeaker(name="Reader", audio=clips["0930"]),)
    for speakers, names in (((), ["A", "B", "A"]), (known, ["Reader", "A", "Reader"])):
        result: Transcript = await drive(whisper).result(
            TranscribeInput(audio=audio, pcm_hz=16_000, diarizes=True, known_speakers=speakers)
        )
        turns = [segment.speaker for segment in result.segments]
        assert [name for i, name in enumerate(turns) if i == 0 or turns[i - 1] != name] == names
