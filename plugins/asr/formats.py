"""Writes transcripts as OpenAI's clients read them: json, text, srt, vtt, verbose_json, diarized_json, and events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from sixfold.core.messages import Finished, Increment
from sixfold.core.serving.api import Running
from sixfold.core.serving.sse import data_frame
from sixfold.plugins.asr.answers import (
    DiarizedObject,
    DurationUsage,
    SegmentObject,
    TranscriptObject,
    TurnObject,
    VerboseObject,
)
from sixfold.plugins.asr.languages import NAMES
from sixfold.plugins.asr.schema import Segment, Task, TokenLogprob, Transcript, WindowDone

TEXT_FORMATS = ("text", "srt", "vtt")


def usage(transcript: Transcript) -> DurationUsage:
    """OpenAI's usage by duration, in whole seconds, begun ones included."""
    return {"type": "duration", "seconds": int(-(-transcript.duration_s // 1))}


def json_body(transcript: Transcript) -> TranscriptObject:
    """The body of ``json``."""
    body: TranscriptObject = {"text": transcript.text, "usage": usage(transcript)}
    logprobs = [one for segment in transcript.segments for one in segment.logprobs]
    if logprobs:
        body["logprobs"] = logprob_objects(logprobs)
    return body


def verbose_body(transcript: Transcript, *, task: Task, granularities: Sequence[str]) -> VerboseObject:
    """The body of ``verbose_json``; ``segments`` and ``words`` as asked for."""
    language = transcript.language
    body: VerboseObject = {
        "task": task,
        "language": NAMES.get(language, language) if language else "",
        "duration": transcript.duration_s,
        "text": transcript.text,
        "usage": usage(transcript),
    }
    if "segment" in granularities or not granularities:
        body["segments"] = [_segment_object(number, segment) for number, segment in enumerate(transcript.segments)]
    if "word" in granularities:
        body["words"] = [
            {"word": word.text.strip(), "start": word.start_s, "end": word.end_s}
            for segment in transcript.segments
            for word in segment.words
        ]
    return body


def diarized_body(transcript: Transcript, *, task: Task) -> DiarizedObject:
    """The body of ``diarized_json``."""
    return {
        "task": task,
        "duration": transcript.duration_s,
        "text": transcript.text,
        "segments": [diarized_segment(number, segment) for number, segment in enumerate(transcript.segments)],
        "usage": usage(transcript),
    }


def diarized_segment(number: int, segment: Segment) -> TurnObject:
    """One turn of a speaker, in the body and as the event ``transcript.text.segment``."""
    return {
        "type": "transcript.text.segment",
        "id": f"seg_{number:03d}",
        "start": segment.start_s,
        "end": segment.end_s,
        "text": segment.text,
        "speaker": segment.speaker,
    }


def text_body(transcript: Transcript, response_format: str) -> str:
    """The body of ``text``, ``srt`` or ``vtt``."""
    if response_format == "text":
        return transcript.text + "\n"
    cues = [
        f"{_clock(segment.start_s, response_format)} --> {_clock(segment.end_s, response_format)}\n{_cue_text(segment)}\n"
        for segment in transcript.segments
    ]
    if response_format == "vtt":
        return "WEBVTT\n\n" + "\n".join(cues)
    return "\n".join(f"{number}\n{cue}" for number, cue in enumerate(cues, start=1))


def logprob_objects(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Token log probabilities as OpenAI writes them."""
    return [{"token": one.token, "logprob": one.logprob, "bytes": list(one.token_bytes)} for one in logprobs]


async def text_events(running: Running) -> AsyncIterator[bytes]:
    """The events of a streamed transcription: a delta for each segment, in order of time, and the whole text at the end."""
    async for delta in ordered_deltas(running):
        if isinstance(delta, Transcript):
            yield _done_frame(delta)
        else:
            yield _frame({"type": "transcript.text.delta", "delta": delta.text} | _logprobs(delta.logprobs))


async def diarized_events(running: Running) -> AsyncIterator[bytes]:
    """As `text_events`; all segments come at the end, when the speakers of the whole file are told apart."""
    async for delta in ordered_deltas(running):
        if isinstance(delta, Transcript):
            for number, segment in enumerate(delta.segments):
                yield _frame(
                    {"type": "transcript.text.delta", "delta": segment.text, "segment_id": f"seg_{number:03d}"}
                )
                yield _frame(diarized_segment(number, segment))
            yield _done_frame(delta)


async def ordered_deltas(running: Running) -> AsyncIterator[Segment | Transcript]:
    """The segments in order of time, as soon as all before them are done; last the transcript."""
    waiting: dict[int, Sequence[Segment]] = {}
    next_index = 0
    async for events in running:
        for event in events:
            output: object = event.output if isinstance(event, Increment) else None
            if isinstance(output, WindowDone):
                waiting[output.index] = output.segments
            while next_index in waiting:
                for segment in waiting.pop(next_index):
                    yield segment
                next_index += 1
            if isinstance(event, Finished) and isinstance(event.result, Transcript):
                yield event.result


def _done_frame(transcript: Transcript) -> bytes:
    logprobs = [one for segment in transcript.segments for one in segment.logprobs]
    event = {"type": "transcript.text.done", "text": transcript.text, "usage": usage(transcript)}
    return _frame(event | _logprobs(logprobs))


def _logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"logprobs": logprob_objects(logprobs)} if logprobs else {}


def _frame(event: Mapping[str, object]) -> bytes:
    return data_frame(msgspec.json.encode(event))


def _segment_object(number: int, segment: Segment) -> SegmentObject:
    return {
        "id": number,
        "seek": segment.seek_frames,
        "start": segment.start_s,
        "end": segment.end_s,
        "text": segment.text,
        "tokens": list(segment.token_ids),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def _cue_text(segment: Segment) -> str:
    # A blank line or an arrow inside a cue would end it or begin another.
    return " ".join(segment.text.split()).replace("-->", "->")


def _clock(seconds: float, response_format: str) -> str:
    minutes, ms = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    mark = "." if response_format == "vtt" else ","
    return f"{hours:02d}:{minutes:02d}:{ms // 1000:02d}{mark}{ms % 1000:03d}"
