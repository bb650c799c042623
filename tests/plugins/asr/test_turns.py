"""Turns of a live session, from probabilities alone."""

from __future__ import annotations

import pytest

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.asr.turns import SpeechStarted, TurnBuffer, TurnEnded

FRAME = 768 * 2  # bytes of 32 ms at 24 kHz


def buffer(prefix_ms: int = 64, silence_ms: int = 96) -> TurnBuffer:
    return TurnBuffer(rate_hz=24_000, threshold=0.5, prefix_ms=prefix_ms, silence_ms=silence_ms)


def feed(turns: TurnBuffer, values: list[float], first: int = 0) -> list[SpeechStarted | TurnEnded]:
    """Each frame's bytes are its number."""
    found: list[SpeechStarted | TurnEnded] = []
    for number, value in enumerate(values, start=first):
        turns.append(bytes([number]) * FRAME)
        heard = turns.unheard()
        assert len(heard) == FRAME
        found += turns.hear([value])
    return found


def test_a_turn_is_the_speech_with_the_audio_before_it_and_its_silence() -> None:
    started, ended = feed(buffer(), [0, 0, 0, 0, 0.9, 0.9, 0, 0, 0, 0])
    assert started == SpeechStarted(at_ms=64)
    assert isinstance(ended, TurnEnded)
    assert (ended.at_ms, set(ended.audio)) == (288, {2, 3, 4, 5, 6, 7, 8})


def test_silence_is_not_kept() -> None:
    turns = buffer()
    feed(turns, [0] * 100)
    assert turns.duration_ms == 64


def test_two_turns_follow_one_another_without_sharing_audio() -> None:
    found = feed(buffer(prefix_ms=320), [0.9, 0, 0, 0, 0.9, 0, 0, 0])
    audio = [one.audio for one in found if isinstance(one, TurnEnded)]
    assert [set(part) for part in audio] == [{0, 1, 2, 3}, {4, 5, 6, 7}]


def test_half_a_frame_waits_for_the_rest() -> None:
    turns = buffer()
    turns.append(bytes(FRAME - 2))
    assert turns.unheard() == b""
    turns.append(bytes(2))
    assert len(turns.unheard()) == FRAME


def test_without_detection_turns_are_the_clients() -> None:
    turns = TurnBuffer(rate_hz=16_000, threshold=None)
    turns.append(bytes(32_000))
    assert turns.unheard() == b""
    assert len(turns.commit()) == 32_000
    assert turns.duration_ms == 0


def test_an_empty_commit_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        buffer().commit()
    assert refusal.value.code == "input_audio_buffer_commit_empty"


def test_speech_after_a_commit_is_heard_anew() -> None:
    turns = buffer()
    feed(turns, [0.9] * 5)
    assert len(turns.commit()) == 5 * FRAME
    started, ended = feed(turns, [0, 0.9, 0, 0, 0], first=5)
    assert started == SpeechStarted(at_ms=160)
    assert isinstance(ended, TurnEnded)
    assert set(ended.audio) == {5, 6, 7, 8, 9}


def test_a_buffer_that_nobody_commits_is_bounded() -> None:
    turns = TurnBuffer(rate_hz=24_000, threshold=None)
    turns.append(bytes(600 * 48_000))
    with pytest.raises(InvalidRequest, match="600 s"):
        turns.append(bytes(2))
