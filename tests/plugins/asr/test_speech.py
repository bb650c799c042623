"""Stretches of speech from probabilities, and windows of a file."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from sixfold.plugins.asr.schema import VadInput, VadSettings, VadState
from sixfold.plugins.asr.speech import SpeechTracker, Stretch
from sixfold.plugins.asr.vad import FRAME_SAMPLES, VoiceDetector
from sixfold.plugins.asr.windows import AudioWindow, WindowCutter


def stretches(values: list[float], **wanted: int) -> list[Stretch]:
    tracker = SpeechTracker(threshold=0.5, silence_frames=wanted.get("silence", 3), max_frames=wanted.get("most"))
    found = [stretch for value in values if (stretch := tracker.feed(value)) is not None]
    last = tracker.finish()
    return [*found, last] if last is not None else found


def test_a_pause_shorter_than_the_silence_does_not_end_speech() -> None:
    assert stretches([0, 0.9, 0.9, 0.1, 0.1, 0.9, 0]) == [Stretch(1, 6)]


def test_speech_ends_where_its_silence_began() -> None:
    assert stretches([0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9]) == [Stretch(0, 2), Stretch(6, 7)]


def test_quiet_speech_above_the_lower_threshold_goes_on() -> None:
    assert stretches([0.9, 0.4, 0.4, 0.4, 0.4, 0.4]) == [Stretch(0, 6)]


def test_speech_without_an_end_is_cut_at_its_least_probable_frame() -> None:
    values = [0.9] * 7 + [0.6] + [0.9] * 12
    assert stretches(values, most=10) == [Stretch(0, 7), Stretch(7, 12), Stretch(12, 20)]


@pytest.fixture(scope="module")
def detector() -> VoiceDetector:
    return VoiceDetector()


def cut(detector: VoiceDetector, audio: NDArray[np.int16], block: int) -> list[AudioWindow]:
    cutter = WindowCutter(detector, VadSettings())
    found = [window for at in range(0, len(audio), block) for window in cutter.feed(audio[at : at + block])]
    return found + cutter.finish()


@pytest.fixture(scope="module")
def long_audio(samples: dict[str, NDArray[np.int16]]) -> NDArray[np.int16]:
    """84 s: three times all clips, with pauses of 0.4 s and one of 8 s."""
    parts = [part for _round in range(3) for clip in samples.values() for part in (clip, np.zeros(6400, np.int16))]
    return np.concatenate([*parts[:12], np.zeros(128_000, np.int16), *parts[12:]])


def test_windows_are_within_thirty_seconds_and_hold_the_files_own_samples(
    detector: VoiceDetector, long_audio: NDArray[np.int16]
) -> None:
    windows = cut(detector, long_audio, 160_000)
    assert len(windows) >= 3
    for window in windows:
        assert 0 < len(window.samples) <= 480_000
        assert np.array_equal(window.samples, long_audio[window.start : window.start + len(window.samples)])
    for before, after in itertools.pairwise(windows):
        assert before.speech[-1][1] <= after.speech[0][0]
        assert before.start + len(before.samples) <= after.speech[0][0]


def test_no_speech_is_outside_the_windows(detector: VoiceDetector, long_audio: NDArray[np.int16]) -> None:
    whole = np.pad(long_audio, (0, -len(long_audio) % FRAME_SAMPLES))
    values, _state = detector.probabilities(whole, VadState())
    covered = np.zeros(len(whole), dtype=bool)
    for window in cut(detector, long_audio, 160_000):
        covered[window.start : window.start + len(window.samples)] = True
    loud = np.flatnonzero(values > 0.5) * FRAME_SAMPLES
    assert len(loud) > 1000
    assert covered[loud].all()


def test_a_long_pause_is_in_no_window(detector: VoiceDetector, long_audio: NDArray[np.int16]) -> None:
    heard = sum(len(window.samples) for window in cut(detector, long_audio, 160_000))
    assert heard < len(long_audio) - 6 * 16_000


def test_windows_do_not_depend_on_how_the_file_was_read(detector: VoiceDetector, long_audio: NDArray[np.int16]) -> None:
    places = [[(w.start, len(w.samples)) for w in cut(detector, long_audio, size)] for size in (1_000, 77_777, 10**9)]
    assert places[0] == places[1] == places[2]


def test_silence_has_no_window(detector: VoiceDetector) -> None:
    assert cut(detector, np.zeros(160_000, np.int16), 50_000) == []


def test_a_live_stream_is_heard_as_the_file_is(detector: VoiceDetector, samples: dict[str, NDArray[np.int16]]) -> None:
    audio = samples["0890"][: 512 * 150]
    whole, _state = detector.probabilities(audio, VadState())
    state, live = VadState(), list[float]()
    for at in range(0, len(audio), 512 * 7):
        answer = detector.answer(VadInput(pcm=audio[at : at + 512 * 7].astype("<i2").tobytes(), state=state))
        state = answer.state
        live += answer.values
    assert live == pytest.approx(whole.tolist(), abs=1e-5)


def test_a_stream_at_24_khz_is_heard_nearly_as_at_16(
    detector: VoiceDetector, samples: dict[str, NDArray[np.int16]]
) -> None:
    audio = samples["0890"][: 512 * 150].astype(float)
    times = np.arange(len(audio) * 3 // 2) * 2 / 3
    at_24k = np.interp(times, np.arange(len(audio)), audio).astype("<i2")
    whole, _state = detector.probabilities(audio.astype(np.int16), VadState())
    state, live = VadState(), list[float]()
    for at in range(0, len(at_24k), 768 * 5):
        answer = detector.answer(VadInput(pcm=at_24k[at : at + 768 * 5].tobytes(), pcm_hz=24_000, state=state))
        state = answer.state
        live += answer.values
    assert len(live) == len(whole)
    assert np.mean((np.array(live) > 0.5) == (whole > 0.5)) > 0.95
