"""Whisper's steps with a scripted network: who shares a batch, what comes back into it, and what leaves it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sixfold.core.batching.model import Granted
from sixfold.core.messages import Request
from sixfold.plugins.asr.fallback import LADDER
from sixfold.plugins.asr.schema import TranscribeInput, Transcript, VadInput
from sixfold.plugins.asr.whisper import WhisperModel
from sixfold.plugins.asr.whisper_sequence import Stage, WhisperSequence
from tests.plugins.asr.conftest import FakeWhisper, refused

Drive = Callable[[Any], Any]


def sequences(model: WhisperModel, wanted: TranscribeInput) -> list[WhisperSequence]:
    request: Request[Any] = Request(request_id="r", input=wanted, arrived_s=0.0)
    return [sequence for piece in model.split(request) for sequence in model.prepare(request, piece)]


def step(model: WhisperModel, batch: list[WhisperSequence]) -> list[bool]:
    for sequence in batch:
        model.reserve(sequence, model.cost(sequence).units)
    return [outcome.done for outcome in model.step([Granted(s, model.cost(s).units) for s in batch])]


def test_windows_of_different_requests_share_each_step(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, clips: dict[str, bytes]
) -> None:
    batch = [s for data in clips.values() for s in sequences(fake_model, TranscribeInput(audio=data))]
    step(fake_model, batch)
    assert len({fake_model.cost(sequence).batch_key for sequence in batch}) == 1
    assert all(step(fake_model, batch))
    assert fake_whisper.steps == [("encode", 5), ("detect", 5), ("generate 0", 5)]


def test_a_window_that_fails_the_checks_is_heard_again_at_the_next_temperature_in_a_later_step(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, clips: dict[str, bytes]
) -> None:
    [bad] = sequences(fake_model, TranscribeInput(audio=clips["0880"], language="en"))
    [good] = sequences(fake_model, TranscribeInput(audio=clips["0930"], language="en"))
    step(fake_model, [bad, good])
    for temperature, logprob in ((0.0, -2.0), (0.2, -1.5), (0.4, -0.5)):
        fake_whisper.answers[bad.row, temperature] = fake_whisper.heard(7, logprob=logprob)
    assert step(fake_model, [bad, good]) == [False, True]
    assert fake_model.cost(bad).batch_key == (Stage.GENERATE, 0.2, 0)
    assert step(fake_model, [bad]) == [False]
    assert step(fake_model, [bad]) == [True]
    assert [segment.temperature for segment in bad.segments] == [0.4]
    assert fake_model.stats()["audio_fallbacks_total"] == 2


def test_the_likeliest_of_all_failed_attempts_is_taken(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, clips: dict[str, bytes]
) -> None:
    [window] = sequences(fake_model, TranscribeInput(audio=clips["0880"], language="en"))
    step(fake_model, [window])
    for temperature in LADDER:
        logprob = -1.1 if temperature == 0.6 else -2.0
        fake_whisper.answers[window.row, temperature] = fake_whisper.heard(9, logprob=logprob)
    done = [step(fake_model, [window]) for _temperature in LADDER]
    assert done == [[False]] * 5 + [[True]]
    assert window.segments[0].temperature == 0.6


def test_a_given_temperature_is_tried_alone(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, clips: dict[str, bytes]
) -> None:
    [window] = sequences(fake_model, TranscribeInput(audio=clips["0880"], language="en", temperature=0.7))
    step(fake_model, [window])
    fake_whisper.answers[window.row, 0.7] = fake_whisper.heard(9, logprob=-5.0)
    assert step(fake_model, [window]) == [True]
    assert window.segments[0].temperature == 0.7


def test_a_window_that_the_model_calls_silent_has_no_text(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, clips: dict[str, bytes]
) -> None:
    [window] = sequences(fake_model, TranscribeInput(audio=clips["0880"], language="en"))
    step(fake_model, [window])
    fake_whisper.answers[window.row, 0.0] = fake_whisper.heard(9, logprob=-3.0, no_speech=0.9)
    assert step(fake_model, [window]) == [True]
    assert window.segments == []


def test_text_whose_end_was_not_heard_is_encoded_again_from_its_last_timestamp(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, clips: dict[str, bytes]
) -> None:
    [window] = sequences(fake_model, TranscribeInput(audio=clips["0870"], language="en"))
    step(fake_model, [window])
    at = fake_whisper.token
    half = (at("<|0.00|>"), 1, at("<|2.00|>"), at("<|2.00|>"), 2)
    fake_whisper.answers[window.row, 0.0] = type(fake_whisper.heard())(half, -0.2, 0.0)
    assert step(fake_model, [window]) == [False]
    assert (window.stage, window.seek) == (Stage.ENCODE, 200)
    step(fake_model, [window])
    fake_whisper.answers[window.row, 0.0] = fake_whisper.heard(3, stop_s=5.0)
    assert step(fake_model, [window]) == [True]
    assert [(s.start_s, s.end_s) for s in window.segments] == [(0.0, 2.0), (2.0, 7.0)]


def test_prompts_of_different_length_do_not_share_a_step_and_translation_does(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, clips: dict[str, bytes]
) -> None:
    wanted = [
        TranscribeInput(audio=clips["0880"], language="en"),
        TranscribeInput(audio=clips["0880"], language="de", task="translate"),
        TranscribeInput(audio=clips["0880"], language="en", prompt="w1 w2"),
    ]
    plain, translated, prompted = (sequences(fake_model, one)[0] for one in wanted)
    step(fake_model, [plain, translated, prompted])
    keys = [fake_model.cost(sequence).batch_key for sequence in (plain, translated, prompted)]
    assert keys[0] == keys[1] != keys[2]
    step(fake_model, [plain, translated])
    step(fake_model, [prompted])
    names = [[fake_whisper.tokenizer.id_to_token(token) for token in prompt] for prompt in fake_whisper.prompts]
    assert names[0][-3:] == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>"]
    assert names[1][-3:] == ["<|startoftranscript|>", "<|de|>", "<|translate|>"]
    assert names[2][0] == "<|startofprev|>"


async def test_the_language_is_that_of_the_files_first_window_whatever_the_others_sound_like(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, drive: Drive, samples: dict[str, NDArray[np.int16]]
) -> None:
    pause = np.zeros(80_000, np.int16)
    audio = np.concatenate([samples["0870"], pause, samples["0880"], pause, samples["0890"]])
    wanted = TranscribeInput(audio=audio.tobytes(), pcm_hz=16_000)
    first, *others = sequences(fake_model, wanted)
    fake_whisper.languages[round(float(first.mel[0, 0]), 4)] = "de"
    step(fake_model, others)  # even when the first window is encoded last
    assert {window.job.language for window in others} == {"de"}
    fake_whisper.steps.clear()
    result: Transcript = await drive(fake_model).result(wanted)
    assert result.language == "de"
    assert [rows for name, rows in fake_whisper.steps if name == "detect"] == [1]
    assert len(result.segments) == 3


def test_the_first_windows_spectrogram_is_there_before_another_piece_of_the_file_can_have_windows(
    fake_model: WhisperModel, samples: dict[str, NDArray[np.int16]]
) -> None:
    audio = np.concatenate([samples["0870"], np.zeros(150 * 16_000, np.int16), samples["0890"]]).tobytes()
    wanted = TranscribeInput(audio=audio, pcm_hz=16_000)
    request: Request[Any] = Request(request_id="r", input=wanted, arrived_s=0.0)
    job: Any = fake_model.split(request)[0]
    job.next_windows()  # of a thread that is slow with its spectrograms
    later = list(fake_model.prepare(request, job))
    assert later and min(window.index for window in later) > 0
    step(fake_model, later)
    assert {window.job.language for window in later} == {"en"}


async def test_silence_ends_without_text(fake_model: WhisperModel, drive: Drive) -> None:
    silent = TranscribeInput(audio=bytes(2 * 16_000 * 3), pcm_hz=16_000)
    result: Transcript = await drive(fake_model).result(silent)
    assert (result.text, result.duration_s, result.language) == ("", 3.0, None)


async def test_a_poisoned_window_fails_alone(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, drive: Drive, clips: dict[str, bytes]
) -> None:
    wanted = [TranscribeInput(audio=data, language="en") for data in clips.values()]
    alone = [await drive(fake_model).result(one) for one in wanted]
    [window] = sequences(fake_model, wanted[2])
    fake_whisper.poisoned = {round(float(window.mel[0, 0]), 4)}
    together = await drive(fake_model).results(wanted)
    assert together[2].status == 500
    assert [r for i, r in enumerate(together) if i != 2] == [r for i, r in enumerate(alone) if i != 2]


async def test_a_cancelled_request_leaves_within_one_step_and_gives_its_slot_back(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, drive: Drive, samples: dict[str, NDArray[np.int16]]
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def gate() -> None:
        started.set()
        assert go_on.wait(30)

    fake_whisper.gate = gate
    pause = np.zeros(80_000, np.int16)
    audio = np.concatenate([part for clip in samples.values() for part in (clip, pause)]).tobytes()
    driver = drive(fake_model)
    request: Request[Any] = Request(
        request_id="long", input=TranscribeInput(audio=audio, pcm_hz=16_000, language="en"), arrived_s=0.0
    )
    stream = driver.replica.submit(request)
    await asyncio.to_thread(started.wait, 30)
    stream.cancel()
    num_steps = len(fake_whisper.steps)
    go_on.set()
    fake_whisper.gate = lambda: None
    result = await driver.result(TranscribeInput(audio=bytes(64_000), pcm_hz=16_000))
    assert result.text == ""
    assert len(fake_whisper.steps) <= num_steps + 1  # the step that was under way
    assert fake_model.stats()["audio_encoded_windows"] == 0


async def test_windows_are_sent_as_they_are_done(
    fake_model: WhisperModel, drive: Drive, samples: dict[str, NDArray[np.int16]]
) -> None:
    pause = np.zeros(80_000, np.int16)
    audio = np.concatenate([samples["0870"], pause, samples["0890"]]).tobytes()
    wanted = TranscribeInput(audio=audio, pcm_hz=16_000, language="en", streams=True)
    events = await drive(fake_model).events(wanted)
    assert [type(event).__name__ for event in events] == ["Increment", "Increment", "Finished"]


async def test_what_the_model_can_not_do_is_refused_with_its_param(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, drive: Drive, clips: dict[str, bytes]
) -> None:
    driver = drive(fake_model)
    audio = clips["0880"]
    answers = await driver.results(
        [
            TranscribeInput(audio=b""),
            TranscribeInput(audio=b"no audio" * 9),
            TranscribeInput(audio=audio, language="ja"),
            TranscribeInput(audio=audio, diarizes=True),
        ]
    )
    params = ["file", "file", "language", "response_format"]
    assert all(refused(answer, param) for answer, param in zip(answers, params, strict=True))


async def test_live_chunks_are_answered_without_a_step(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, drive: Drive, samples: dict[str, NDArray[np.int16]]
) -> None:
    pcm = samples["0880"][: 512 * 40].tobytes()
    heard = await drive(fake_model).result(VadInput(pcm=pcm))
    assert len(heard.values) == 40
    assert max(heard.values) > 0.8
    assert fake_whisper.steps == []


def test_an_aligned_window_has_words_and_token_probabilities(
    fake_model: WhisperModel, fake_whisper: FakeWhisper, clips: dict[str, bytes]
) -> None:
    wanted = TranscribeInput(audio=clips["0880"], language="en", wants_words=True, wants_logprobs=True)
    [window] = sequences(fake_model, wanted)
    step(fake_model, [window])
    assert step(fake_model, [window]) == [False]
    assert window.stage is Stage.ALIGN
    assert step(fake_model, [window]) == [True]
    [segment] = window.segments
    assert [word.start_s for word in segment.words] == [0.0]
    assert [round(one.logprob, 3) for one in segment.logprobs] == [-0.693]


@pytest.mark.parametrize("seconds", [1.0, 29.9, 300.0, 3599.0])
def test_the_estimate_of_bare_samples_is_near_their_work(fake_model: WhisperModel, seconds: float) -> None:
    wanted = TranscribeInput(audio=bytes(int(seconds * 32_000)), pcm_hz=16_000)
    request: Request[Any] = Request(request_id="r", input=wanted, arrived_s=0.0)
    windows = max(1.0, seconds / 30)
    assert 0.4 < fake_model.estimate_units(request) / (windows * 3750) < 2.1
