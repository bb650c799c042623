"""Speech over HTTP and WebSocket with OpenAI's client: the demo's model on the LibriVox clips."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import av
import httpx
import jiwer
import numpy as np
import openai
import pytest
import yaml
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from tests.e2e.conftest import ROOT
from tests.servers import DemoServer, start_server, stop_server

pytestmark = pytest.mark.models

CLIPS = ROOT / "tests" / "data" / "librivox"
NAMES = ["0870", "0880", "0890", "0920", "0930"]


@pytest.fixture(scope="module")
def speech_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    data = yaml.safe_load((ROOT / "examples" / "demo.yaml").read_text())
    config = tmp_path_factory.mktemp("speech") / "speech.yaml"
    models = {"hear": data["models"]["hear"]}
    config.write_text(yaml.safe_dump({"models": models, "server": {"port": 0}}))
    server = start_server(config)
    try:
        yield server
    finally:
        assert stop_server(server) == 0


@pytest.fixture
def client(speech_server: DemoServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{speech_server.url}/v1", api_key="none", max_retries=0, timeout=300) as made:
        yield made


def clip(name: str) -> tuple[str, bytes]:
    return (f"{name}.flac", (CLIPS / f"{name}.flac").read_bytes())


def test_the_word_error_rate_on_librivox_is_at_most_three_percent(client: openai.OpenAI) -> None:
    normalizer: Any = EnglishTextNormalizer
    normalize: Callable[[str], str] = normalizer({})
    rows = (line.split("\t") for line in (CLIPS / "transcription.tsv").read_text().splitlines())
    spoken = dict(rows)
    heard = {name: client.audio.transcriptions.create(model="hear", file=clip(name)).text for name in NAMES}
    rate = jiwer.wer([normalize(spoken[name]) for name in NAMES], [normalize(heard[name]) for name in NAMES])
    assert rate <= 0.03, heard


def test_verbose_json_has_words_and_segments(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        model="whisper-1",
        file=clip("0870"),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert (answer.language, round(answer.duration, 1)) == ("english", 7.1)
    assert answer.words is not None
    assert answer.segments is not None
    assert "".join(segment.text for segment in answer.segments).strip() == answer.text
    assert [word.word.strip(".,").lower() for word in answer.words][-3:] == ["do", "for", "them"]
    starts = [word.start for word in answer.words]
    assert starts == sorted(starts)
    assert all(0 <= word.start <= word.end <= 7.3 for word in answer.words)
    assert answer.usage is not None
    assert answer.usage.seconds == 8


@pytest.mark.parametrize(
    ("response_format", "begin"), [("srt", "1\n00:00:00,000 --> 00:00:0"), ("vtt", "WEBVTT\n\n00:")]
)
def test_subtitles_are_plain_text(client: openai.OpenAI, response_format: Any, begin: str) -> None:
    transcriptions: Any = client.audio.transcriptions
    answer = transcriptions.with_raw_response.create(
        model="hear", file=clip("0880"), response_format=response_format, language="en"
    )
    assert answer.headers["content-type"].startswith("text/plain")
    body = answer.text if isinstance(answer.text, str) else answer.http_response.text
    assert body.startswith(begin)
    assert "ill-disposed young man" in body


def test_a_stream_has_deltas_and_the_whole_text(client: openai.OpenAI) -> None:
    stream = client.audio.transcriptions.create(model="hear", file=clip("0890"), language="en", stream=True)
    events = list(stream)
    assert [event.type for event in events][-1] == "transcript.text.done"
    deltas = "".join(event.delta for event in events if event.type == "transcript.text.delta")
    assert deltas.strip() == events[-1].text  # type: ignore[union-attr]
    assert "cold-hearted" in deltas


def test_log_probabilities_come_with_each_token(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(model="hear", file=clip("0930"), language="en", include=["logprobs"])
    assert answer.logprobs is not None
    assert "".join(one.token or "" for one in answer.logprobs).strip() == answer.text
    assert all((one.logprob or 0.0) <= 0 for one in answer.logprobs)


def test_translations_answer_in_english(client: openai.OpenAI) -> None:
    with pytest.warns(DeprecationWarning):  # OpenAI's client says so of the whole route
        translations: Any = client.audio.translations
        answer = translations.create(model="hear", file=clip("0880"))
    assert "young man" in answer.text.lower()


def test_diarized_json_names_speakers(client: openai.OpenAI) -> None:
    answer: Any = client.audio.transcriptions.create(
        model="hear", file=clip("0870"), response_format="diarized_json", chunking_strategy="auto"
    )
    assert {segment.speaker for segment in answer.segments} == {"A"}
    assert "Dashwood" in answer.text


async def test_eight_requests_at_once_equal_each_alone_beside_bad_company(speech_server: DemoServer) -> None:
    """With them run a cancelled request, one whose client leaves in mid-stream, and one that is no audio."""
    untyped: Any = openai.AsyncOpenAI(base_url=f"{speech_server.url}/v1", api_key="none", max_retries=0, timeout=300)
    async with untyped as client:

        async def hear(name: str, **wanted: Any) -> str:
            answer = await client.audio.transcriptions.create(model="hear", file=clip(name), **wanted)
            text: str = answer if isinstance(answer, str) else answer.to_json()
            return text

        async def hear_streamed(name: str) -> str:
            stream = await client.audio.transcriptions.create(model="hear", file=clip(name), stream=True)
            return "".join([event.delta async for event in stream if event.type == "transcript.text.delta"])

        async def leave_after_the_first_words() -> None:
            stream = await client.audio.transcriptions.create(model="hear", file=clip("0920"), stream=True)
            async for _event in stream:
                await stream.close()
                return

        async def hear_noise() -> int:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.audio.transcriptions.create(model="hear", file=("noise.flac", b"fLaC" + bytes(range(256))))
            return refused.value.status_code

        words = {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
        wanted: list[Callable[[], Any]] = [
            *(functools.partial(hear, name) for name in NAMES),
            functools.partial(hear, "0870", response_format="srt", language="en"),
            functools.partial(hear, "0890", **words),
            functools.partial(hear_streamed, "0930"),
        ]
        alone = [await request() for request in wanted]
        assert len(set(alone)) == 8
        cancelled = asyncio.create_task(hear("0930", language="en"))
        company = [asyncio.create_task(leave_after_the_first_words()), asyncio.create_task(hear_noise())]
        together = [asyncio.create_task(request()) for request in wanted]
        await company[1]
        cancelled.cancel()
        assert [await task for task in together] == alone
        await company[0]
        assert company[1].result() == 400
        assert await until_idle(speech_server)


async def until_idle(server: DemoServer) -> bool:
    """Whether the server's count of running requests falls to none."""
    async with httpx.AsyncClient() as http:
        while True:
            text = (await http.get(f"{server.url}/metrics")).text
            running = [line for line in text.splitlines() if line.startswith("sixfold:num_requests_running{")]
            if running and all(float(line.rpartition(" ")[2]) == 0 for line in running):
                return True


def silent_film() -> bytes:
    out = io.BytesIO()
    with av.open(out, mode="w", format="mp4") as opened:
        file: Any = opened
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype=np.uint8), format="rgb24")))
        file.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize("name", ["empty", "corrupt", "truncated", "film"])
def test_what_is_no_audio_is_a_400_that_names_the_file(client: openai.OpenAI, name: str) -> None:
    data = {
        "empty": b"",
        "corrupt": b"no audio" * 100,
        "truncated": clip("0880")[1][:60],
        "film": silent_film(),
    }[name]
    with pytest.raises(openai.BadRequestError) as refusal:
        client.audio.transcriptions.create(model="hear", file=("a.wav", data))
    assert refusal.value.param == "file"


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"response_format": "vtt", "stream": True}, "stream"),
        ({"language": "klingon"}, "language"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ({"extra_body": {"beams": 3}}, "beams"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_is_not_honoured_is_a_400_that_names_it(client: openai.OpenAI, wanted: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.audio.transcriptions.create(model="hear", file=clip("0880"), **wanted)
    assert refusal.value.param == param


def at_24_khz(*names: str) -> bytes:
    """The clips with a second of silence behind each."""
    parts: list[Any] = []
    for name in names:
        with av.open(io.BytesIO(clip(name)[1]), mode="r") as file:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=24_000)
            for frame in itertools.chain(file.decode(audio=0), [None]):
                parts += [piece.to_ndarray().reshape(-1) for piece in resampler.resample(frame)]
        parts.append(np.zeros(24_000, dtype=np.int16))
    return np.concatenate(parts).astype("<i2").tobytes()


async def collect(connection: Any, *, until: int) -> list[Any]:
    """Events up to so many finished transcriptions."""
    events: list[Any] = []
    while sum(event.type.endswith((".completed", ".failed")) for event in events) < until:
        events.append(await connection.recv())
    return events


async def test_a_live_session_finds_turns_and_writes_them_down(speech_server: DemoServer) -> None:
    client = openai.AsyncOpenAI(base_url=f"{speech_server.url}/v1", api_key="none")
    audio = at_24_khz("0880", "0930")
    async with client.realtime.connect(model="hear") as connection:
        assert (await connection.recv()).type == "session.created"
        for at in range(0, len(audio), 9600):
            chunk = base64.b64encode(audio[at : at + 9600]).decode()
            await connection.input_audio_buffer.append(audio=chunk)
        events = await collect(connection, until=2)
    names = [event.type for event in events]
    assert names.count("input_audio_buffer.speech_started") == 2
    assert names.count("input_audio_buffer.speech_stopped") == 2
    assert names.count("input_audio_buffer.committed") == 2
    assert names.count("conversation.item.added") == 2
    done = [event for event in events if event.type == "conversation.item.input_audio_transcription.completed"]
    assert any("ill-disposed young man" in event.transcript for event in done)
    assert any("amiable himself" in event.transcript for event in done)
    started = [event.audio_start_ms for event in events if event.type == "input_audio_buffer.speech_started"]
    assert started[0] < 300
    assert 3500 < started[1] < 4500


async def test_without_turn_detection_the_client_commits(speech_server: DemoServer) -> None:
    client = openai.AsyncOpenAI(base_url=f"{speech_server.url}/v1", api_key="none")
    async with client.realtime.connect(model="hear", extra_query={"intent": "transcription"}) as connection:
        await connection.recv()
        transcription = {"model": "whisper-1", "language": "en"}
        audio_input = {"turn_detection": None, "transcription": transcription}
        session: Any = {"type": "transcription", "audio": {"input": audio_input}}
        await connection.session.update(session=session)
        updated: Any = await connection.recv()
        assert updated.type == "session.updated"
        assert updated.session.audio.input.turn_detection is None
        await connection.input_audio_buffer.commit()
        empty: Any = await connection.recv()
        assert (empty.type, empty.error.code) == ("error", "input_audio_buffer_commit_empty")
        await connection.input_audio_buffer.append(audio=base64.b64encode(at_24_khz("0890")).decode())
        await connection.input_audio_buffer.commit()
        events = await collect(connection, until=1)
    deltas = "".join(e.delta or "" for e in events if e.type.endswith("transcription.delta"))
    assert deltas.strip() == events[-1].transcript
    assert "cold-hearted" in events[-1].transcript
    assert events[-1].usage.type == "duration"


async def test_a_wrong_event_is_answered_and_the_session_goes_on(speech_server: DemoServer) -> None:
    client = openai.AsyncOpenAI(base_url=f"{speech_server.url}/v1", api_key="none")
    async with client.realtime.connect(model="hear") as connection:
        await connection.recv()
        wrong: list[Any] = [
            {"type": "response.create", "event_id": "mine"},
            {"type": "input_audio_buffer.append", "audio": "%%"},
            {
                "type": "session.update",
                "session": {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcmu"}}}},
            },
        ]
        for event in wrong:
            await connection.send_raw(json.dumps(event))
            answer: Any = await connection.recv()
            assert answer.type == "error", event
            assert answer.error.event_id == event.get("event_id")
        await connection.input_audio_buffer.clear()
        assert (await connection.recv()).type == "input_audio_buffer.cleared"


async def test_an_unknown_model_is_refused_in_the_handshake(speech_server: DemoServer) -> None:
    client = openai.AsyncOpenAI(base_url=f"{speech_server.url}/v1", api_key="none")
    with pytest.raises(Exception, match="404"):
        async with client.realtime.connect(model="nothing"):
            pass


def test_metrics_count_the_audio(speech_server: DemoServer, client: openai.OpenAI) -> None:
    client.audio.transcriptions.create(model="hear", file=clip("0880"), language="en")
    from urllib.request import urlopen

    until_s = time.monotonic() + 10.0  # the server hears of its workers' figures a moment later
    seconds, text = 0.0, ""
    while not seconds:
        assert time.monotonic() < until_s
        text = urlopen(f"{speech_server.url}/metrics").read().decode()
        line = next(line for line in text.splitlines() if line.startswith("sixfold:audio_duration_seconds_total"))
        seconds = float(line.rpartition(" ")[2])
    assert "sixfold:audio_compute_rtf{" in text
