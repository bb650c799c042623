"""One server, the shipped demo as it is, all six modalities through the official client: each answer is checked by content."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from examples.train_tiny.check_image import check_image, find_shapes
from tests.e2e.conftest import ROOT
from tests.servers import DemoServer

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")]

CAPITAL: Any = [{"role": "user", "content": "Name the capital of France."}]
SENTENCE = "The patient has no known allergy to penicillin."
SCENE = "a small red circle above a large blue square on a green background"


@pytest.fixture
def client(six_server: DemoServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{six_server.url}/v1", api_key="none", max_retries=0, timeout=300) as made:
        yield made


@pytest.fixture
async def async_client(six_server: DemoServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{six_server.url}/v1", api_key="none", max_retries=0, timeout=300) as made:
        yield made


def pixels(encoded: str | None) -> NDArray[np.uint8]:
    assert encoded is not None
    return np.array(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


def frames(data: bytes) -> list[NDArray[np.uint8]]:
    opened: Any = av  # typed in part
    with opened.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def videos(client: openai.OpenAI) -> Any:
    return client.videos  # OpenAI has ended its own service, and so marks the client's methods as deprecated


def test_the_demo_is_listed_with_six_models(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {"chat", "embed", "speak", "hear", "draw", "film"} <= names


def test_it_chats_in_the_type_that_it_ships_with(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chat", temperature=0, max_tokens=40, messages=CAPITAL)
    assert "Paris" in (answer.choices[0].message.content or "")


def test_what_it_speaks_it_hears_word_for_word(client: openai.OpenAI) -> None:
    sound = client.audio.speech.create(model="speak", voice="alloy", input=SENTENCE).read()
    heard = client.audio.transcriptions.create(model="hear", file=("speech.mp3", sound), language="en").text
    assert heard.strip() == SENTENCE


def test_a_picture_shows_what_was_asked(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model="draw", prompt=SCENE, n=4, size="64x64", response_format="b64_json", extra_body={"seed": 1}
    )
    problems = [check_image(pixels(picture.b64_json), SCENE) for picture in answer.data or ()]
    assert sum(not found for found in problems) >= 3, problems


def test_a_clip_moves_as_asked(client: openai.OpenAI) -> None:
    job = videos(client).create_and_poll(
        model="film", prompt="a large red ball moving right on a white background", extra_body={"seed": 1}
    )
    assert job.status == "completed", job.error
    clip = frames(videos(client).download_content(job.id).read())
    assert len(clip) == 17
    places = [found[0].x_px for frame in clip if (found := find_shapes(frame)[1])]
    assert places[-1] - places[0] > 8
    videos(client).delete(job.id)


def test_a_running_video_is_cancelled(client: openai.OpenAI) -> None:
    job = videos(client).create(model="film", prompt="a blue ball moving up", extra_body={"num_inference_steps": 100})
    assert videos(client).delete(job.id).deleted
    with pytest.raises(openai.NotFoundError):
        videos(client).retrieve(job.id)


async def test_all_modalities_answer_at_once_as_they_do_alone(async_client: openai.AsyncOpenAI) -> None:
    client = async_client
    sound = (ROOT / "tests" / "data" / "librivox" / "0880.flac").read_bytes()

    async def chat() -> object:
        answer = await client.chat.completions.create(model="chat", temperature=0, max_tokens=16, messages=CAPITAL)
        return "Paris" in (answer.choices[0].message.content or "")

    async def embed() -> object:
        return tuple((await client.embeddings.create(model="embed", input="a meal")).data[0].embedding)

    async def speak() -> object:
        return (
            await client.audio.speech.create(model="speak", voice="alloy", input="Hello.", response_format="pcm")
        ).content

    async def hear() -> object:
        return (await client.audio.transcriptions.create(model="hear", file=("a.flac", sound), language="en")).text

    async def draw() -> object:
        answer = await client.images.generate(
            model="draw", prompt=SCENE, response_format="b64_json", extra_body={"seed": 3, "num_inference_steps": 8}
        )
        return pixels((answer.data or [])[0].b64_json)

    calls = (chat, embed, speak, hear, draw)
    alone = [await call() for call in calls]
    together = await asyncio.gather(*(call() for call in calls * 3))
    for number, (name, found) in enumerate(zip([call.__name__ for call in calls] * 3, together, strict=True)):
        expected = alone[number % len(calls)]
        if name == "embed":
            np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-5)
        elif name == "draw":
            # a step of eight bits: rows of one batch differ by rounding
            assert np.abs(np.asarray(found, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1
        else:
            assert found == expected, name


def test_no_model_takes_more_memory_than_it_said_before_it_loaded(
    client: openai.OpenAI, six_server: DemoServer
) -> None:
    client.chat.completions.create(model="chat", temperature=0, max_tokens=4, messages=CAPITAL)
    said: dict[str, float] = {}
    seen: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{six_server.url}/metrics").text):
        for sample in family.samples:
            name = sample.labels.get("model_name", "")
            if sample.name == "sixfold:memory_bytes":
                said[name] = said.get(name, 0.0) + sample.value
            elif sample.name == "sixfold:memory_measured_bytes":
                seen[name] = sample.value
    assert seen.keys() == {"chat", "embed", "speak", "hear", "draw", "film"}
    wrong = {name: (seen[name], said[name]) for name in seen if not 0.2 * said[name] < seen[name] <= said[name]}
    assert not wrong
