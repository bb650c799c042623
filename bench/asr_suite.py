"""Transcriptions over HTTP: short clips alone, and short clips beside long files."""

from __future__ import annotations

import io
import itertools
import json
import sys
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from load import Call, Run, percentile, run_closed_loop
from servers import RunningServer, Target
from targets import OFFLINE, PEERS, SIXFOLD, WORK, Row

RATE_HZ = 16_000
_BOUNDARY = "sixfold-bench"
_PATH = "/v1/audio/transcriptions"


@dataclass(frozen=True, slots=True)
class Workload:
    """What is sent; ``is_long`` says for each call of a cycle whether it is the long file."""

    name: str
    is_long: tuple[bool, ...]
    in_flight: int


CLIPS = Workload("five clips of 3 to 7 s, 8 in flight", (False,) * 10, 8)
MIXED = Workload("a file of 104 s in every four requests, 4 in flight", (True, False, False, False) * 2, 4)
WORKLOADS = (CLIPS, MIXED)


@dataclass(frozen=True, slots=True)
class Recording:
    """A file and words that a right transcript holds."""

    data: bytes
    duration_ms: int
    must_hold: tuple[str, ...]


def recordings(folder: Path) -> tuple[list[Recording], Recording]:
    """The five clips, and a long file of them with pauses of half a second, four times over."""
    spoken = dict(line.split("\t") for line in (folder / "transcription.tsv").read_text().splitlines())
    clips: list[Recording] = []
    parts: list[np.ndarray] = []
    for name, text in spoken.items():
        data = (folder / f"{name}.flac").read_bytes()
        with av.open(io.BytesIO(data)) as file:
            samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)])
        parts += [samples.astype("<i2"), np.zeros(RATE_HZ // 2, dtype="<i2")]
        clips.append(Recording(data, len(samples) * 1000 // RATE_HZ, (max(text.split(), key=len),)))
    whole = np.concatenate(parts * 4)
    out = io.BytesIO()
    with wave.open(out, "wb") as writer:
        writer.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        writer.writeframes(whole.tobytes())
    words = tuple(word for clip in clips for word in clip.must_hold)
    return clips, Recording(out.getvalue(), len(whole) * 1000 // RATE_HZ, words)


def rows(model: Path, *, batch_size: int) -> tuple[Row, ...]:
    """Sixfold first, then faster-whisper's own two ways."""
    config = WORK / "sixfold-speech.yaml"
    config.write_text(json.dumps({"models": {"speech": {"source": f"file:{model.resolve()}"}}}))
    ours = Target(
        name="sixfold-speech",
        command=lambda port: [str(SIXFOLD), "serve", str(config), "--port", str(port), "--log-level", "warning"],
        env=OFFLINE,
        ready_path="/ready",
        pausable=False,
    )

    def peer(name: str, *arguments: str) -> Target:
        script = str(PEERS / "faster_whisper_server.py")
        return Target(
            name=name,
            command=lambda port: [sys.executable, script, str(model), "--port", str(port), *arguments],
            env=OFFLINE,
            ready_path="/health",
        )

    targets = {
        "Sixfold": ours,
        "faster-whisper, one by one": peer("faster-whisper"),
        "BatchedInferencePipeline": peer("faster-whisper-batched", "--batched", "--batch-size", str(batch_size)),
    }
    return tuple(
        Row(name=name, target=target, model="speech", path=_PATH, dtype="int8") for name, target in targets.items()
    )


def calls(workload: Workload, clips: Sequence[Recording], long: Recording) -> Iterator[Call]:
    """The workload's files in the same order, over and over."""
    shorts = itertools.cycle(clips)
    for is_long in itertools.cycle(workload.is_long):
        recording = long if is_long else next(shorts)
        yield Call(
            body=_form(recording.data),
            num_tokens=recording.duration_ms,
            content_type=f"multipart/form-data; boundary={_BOUNDARY}",
        )


async def measure(
    server: RunningServer, row: Row, workload: Workload, clips: Sequence[Recording], long: Recording, *, num_calls: int
) -> dict[str, float]:
    """Sends ``num_calls`` requests; every text is checked."""
    run = await run_closed_loop(
        server.port,
        row.path,
        calls(workload, clips, long),
        in_flight=workload.in_flight,
        min_calls=num_calls,
        min_s=0,
    )
    check_texts(run, row, [*clips, long])
    latencies_s = [answer.ended_s - answer.started_s for _call, answer in run.answers]
    of_clips_s = [
        answer.ended_s - answer.started_s for call, answer in run.answers if call.num_tokens != long.duration_ms
    ]
    return {
        "num_requests": len(run.answers),
        "requests_per_s": len(run.answers) / run.elapsed_s,
        "audio_s_per_s": sum(call.num_tokens for call, _answer in run.answers) / 1000 / run.elapsed_s,
        "p50_ms": percentile(latencies_s, 0.5) * 1000,
        "p95_ms": percentile(latencies_s, 0.95) * 1000,
        "clip_p50_ms": percentile(of_clips_s, 0.5) * 1000,
        "clip_p95_ms": percentile(of_clips_s, 0.95) * 1000,
    }


def check_texts(run: Run, row: Row, known: Sequence[Recording]) -> None:
    """A fast wrong answer is no answer: each text holds the longest word of each clip in its file.

    Raises:
        RuntimeError: It does not.
    """
    for call, answer in run.answers:
        [recording] = [one for one in known if one.duration_ms == call.num_tokens]
        text = json.loads(answer.body)["text"].lower()
        missing = [word for word in recording.must_hold if word not in text]
        if missing:
            raise RuntimeError(f"{row.name}: {missing} not in {text!r}")


def _form(audio: bytes) -> bytes:
    fields = {"model": "speech", "language": "en"}
    head = "".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    file = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return head.encode() + file.encode() + audio + f"\r\n--{_BOUNDARY}--\r\n".encode()
