"""The forms of an answer, field for field."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Event, Finished, Increment
from sixfold.core.serving.api import Upload
from sixfold.plugins.asr import formats
from sixfold.plugins.asr.forms import TranscriptionForm
from sixfold.plugins.asr.languages import language_code
from sixfold.plugins.asr.schema import Segment, TokenLogprob, Transcript, WindowDone, Word

FIRST = Segment(
    text=" Hello --> there.",
    start_s=0.0,
    end_s=1.5,
    token_ids=(1, 2),
    words=(Word(text=" Hello", start_s=0.1, end_s=0.6, probability=0.9),),
    logprobs=(TokenLogprob(token=" Hello", token_bytes=b" Hello", logprob=-0.1),),
    speaker="A",
)
SECOND = Segment(text=" Bye.", start_s=3661.0, end_s=3662.25, speaker="B")
TRANSCRIPT = Transcript(language="en", duration_s=3662.3, segments=(FIRST, SECOND))


def test_srt_counts_cues_and_writes_commas() -> None:
    assert formats.text_body(TRANSCRIPT, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello -> there.\n\n2\n01:01:01,000 --> 01:01:02,250\nBye.\n"
    )


def test_vtt_has_its_header_and_writes_points() -> None:
    body = formats.text_body(TRANSCRIPT, "vtt")
    assert body.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello -> there.\n\n01:01:01.000 -->")


def test_text_is_a_line() -> None:
    assert formats.text_body(TRANSCRIPT, "text") == "Hello --> there. Bye.\n"


def test_verbose_json_has_segments_unless_words_alone_are_wanted() -> None:
    body = formats.verbose_body(TRANSCRIPT, task="transcribe", granularities=())
    assert (body["task"], body["language"], body["duration"]) == ("transcribe", "english", 3662.3)
    assert set(body.get("segments", [])[0]) == {
        *("id", "seek", "start", "end", "text", "tokens"),
        *("temperature", "avg_logprob", "compression_ratio", "no_speech_prob"),
    }
    assert "words" not in body
    words = formats.verbose_body(TRANSCRIPT, task="transcribe", granularities=("word",))
    assert words.get("words") == [{"word": "Hello", "start": 0.1, "end": 0.6}]
    assert "segments" not in words
    assert body["usage"] == {"type": "duration", "seconds": 3663}


def test_json_has_log_probabilities_if_there_are_any() -> None:
    assert formats.json_body(TRANSCRIPT).get("logprobs") == [
        {"token": " Hello", "logprob": -0.1, "bytes": [*b" Hello"]}
    ]
    assert "logprobs" not in formats.json_body(Transcript(language=None, duration_s=0.0, segments=(SECOND,)))


class Events:
    def __init__(self, events: list[Event]) -> None:
        self.events = events

    async def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        for event in self.events:
            yield (event,)


async def test_deltas_come_in_order_of_time_though_windows_are_done_in_any_order() -> None:
    finished: Event = Finished(request_id="r", result=TRANSCRIPT)
    done: list[Event] = [
        Increment(request_id="r", output=WindowDone(index=1, segments=(SECOND,))),
        Increment(request_id="r", output=WindowDone(index=0, segments=(FIRST,))),
        finished,
    ]
    frames = [msgspec.json.decode(frame[6:]) async for frame in formats.text_events(Events(done))]
    assert [frame["type"].rpartition(".")[2] for frame in frames] == ["delta", "delta", "done"]
    assert [frame.get("delta") for frame in frames[:2]] == [FIRST.text, SECOND.text]
    assert frames[2]["text"] == TRANSCRIPT.text
    assert frames[2]["usage"] == {"type": "duration", "seconds": 3663}


async def test_diarized_events_name_their_speakers() -> None:
    running = Events([Finished(request_id="r", result=TRANSCRIPT)])
    frames = [msgspec.json.decode(frame[6:]) async for frame in formats.diarized_events(running)]
    segments = [frame for frame in frames if frame["type"] == "transcript.text.segment"]
    assert [segment["speaker"] for segment in segments] == ["A", "B"]
    assert frames[-1]["type"] == "transcript.text.done"


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"response_format": "srt", "stream": True}, "stream"),
        ({"timestamp_granularities": ("word",)}, "timestamp_granularities"),
        ({"response_format": "text", "include": ("logprobs",)}, "include"),
        ({"known_speaker_names": ("x",)}, "known_speaker_references"),
        ({"known_speaker_names": ("x",), "known_speaker_references": ("data:,",)}, "known_speaker_names"),
    ],
)
def test_what_can_not_be_honoured_is_refused_by_name(wanted: dict[str, object], param: str) -> None:
    form = TranscriptionForm.model_validate({"file": Upload("a.wav", "audio/wav", b"x"), "model": "m", **wanted})
    with pytest.raises(InvalidRequest) as refusal:
        form.check()
    assert refusal.value.param == param


@pytest.mark.parametrize(("text", "code"), [("en", "en"), ("EN-us", "en"), ("German", "de"), ("xx", None), ("", None)])
def test_languages_by_code_and_name(text: str, code: str | None) -> None:
    assert language_code(text) == code
