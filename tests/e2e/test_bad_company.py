"""Eight mixed requests at once, beside one that is cancelled, one whose client leaves and one that can't be served: each of
the eight is what it is alone. Chats, embeddings, pictures and videos; speech and its recognition, which need more words, have
tests of the same name in test_speech.py and test_transcription.py. Faults inside a model can't be sent over HTTP: they are
injected in the tests of the plugins.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.servers import DemoServer

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")]

Request = Callable[[], Awaitable[Any]]
SCENES = (
    "a small red circle above a large blue square on a green background",
    "a large yellow triangle on a white background",
    "two small blue circles on a black background",
    "a small green square on a red background",
)


@pytest.fixture
async def text_client(demo_server: DemoServer) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0, timeout=300) as made:
        yield made


@pytest.fixture
async def media_client(six_server: DemoServer) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{six_server.url}/v1", api_key="none", max_retries=0, timeout=300) as made:
        yield made


async def alone_and_together(
    requests: Sequence[Request], *, cancelled: Request, leaves: Request, refused: Request
) -> tuple[list[Any], list[Any]]:
    """The answers one after another, then at once beside the three others."""
    alone = [await request() for request in requests]
    doomed = asyncio.ensure_future(cancelled())
    company = [asyncio.ensure_future(leaves()), asyncio.ensure_future(refused())]
    running = [asyncio.ensure_future(request()) for request in requests]
    await asyncio.wait(
        company[1:]
    )  # what is refused is refused at once: the first of all to come is far from its end then
    assert doomed.cancel(), "it was to be cancelled while it ran, and had ended"
    together = await asyncio.gather(*running)
    await company[0]
    with pytest.raises(openai.BadRequestError):
        await company[1]
    return alone, together


async def leave(stream: Any) -> None:
    """Closes the connection after the first event."""
    async for _event in stream:
        await stream.close()
        return


async def test_chats_equal_each_alone_beside_bad_company(text_client: Any) -> None:
    def chat(index: int, **more: Any) -> Request:
        body = {
            "model": "chat",
            "messages": [
                {"role": "user", "content": f"Count from {index} on, and say something about it. " * (1 + index)}
            ],
            "max_tokens": 12 + 3 * index,
            "temperature": 0,  # a drawn token may hang on the last bit of a sum over the vocabulary
            "presence_penalty": 0.5 * (index % 2),
            **more,
        }
        return lambda: text_client.chat.completions.create(**body)

    def text(request: Request) -> Request:
        async def said() -> str:
            answer = await request()
            content: str = answer.choices[0].message.content
            return content

        return said

    async def leaves() -> None:
        await leave(await chat(9, stream=True, max_tokens=2000)())

    alone, together = await alone_and_together(
        [text(chat(index)) for index in range(8)],
        cancelled=chat(10, max_tokens=4000, extra_body={"ignore_eos": True}),
        leaves=leaves,
        refused=chat(11, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}),
    )
    assert len(set(alone)) == 8
    assert together == alone


async def test_embeddings_equal_each_alone_beside_bad_company(text_client: Any, demo_server: DemoServer) -> None:
    def embed(texts: list[str]) -> Request:
        async def numbers() -> Any:
            answer = await text_client.embeddings.create(model="embed", input=texts, encoding_format="float")
            return np.array([item.embedding for item in answer.data])

        return numbers

    async def leaves() -> None:
        with pytest.raises(httpx.ReadTimeout):  # the client gives up, and closes the connection
            async with httpx.AsyncClient(timeout=httpx.Timeout(30, read=0.001)) as http:
                body = {"model": "embed", "input": ["a longer text about nothing at all"] * 500}
                await http.post(f"{demo_server.url}/v1/embeddings", json=body)

    many = [f"text number {index} of a long list" for index in range(1500)]
    alone, together = await alone_and_together(
        [embed([f"a meal for {index}, " * (1 + 5 * index)] * (1 + index % 3)) for index in range(8)],
        cancelled=embed(many),
        leaves=leaves,
        refused=embed(["fine", ""]),
    )
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


async def test_pictures_equal_each_alone_beside_bad_company(media_client: Any) -> None:
    def ask(index: int, **more: Any) -> Request:
        extra = {
            "seed": index,
            "num_inference_steps": 4 + index % 3,
            "guidance_scale": 2.0 + index,
            **more.pop("extra", {}),
        }
        body = {"model": "draw", "prompt": SCENES[index % 4], "size": ("64x64", "64x48")[index % 2], **more}
        return lambda: media_client.images.generate(**body, extra_body=extra)

    def picture(request: Request) -> Request:
        async def drawn() -> Any:
            answer = await request()
            return pixels(answer.data[0].b64_json)

        return drawn

    async def leaves() -> None:
        await leave(await ask(8, stream=True, partial_images=3, extra={"num_inference_steps": 100})())

    alone, together = await alone_and_together(
        [picture(ask(index)) for index in range(8)],
        cancelled=ask(9, extra={"num_inference_steps": 200}),
        leaves=leaves,
        refused=ask(10, prompt="a red circle " * 400),
    )
    for expected, found in zip(alone, together, strict=True):
        assert np.abs(found - expected).max() <= 1  # a step of eight bits: rows of one batch differ by rounding


@pytest.mark.slow
async def test_videos_equal_each_alone_beside_bad_company(media_client: Any) -> None:
    videos = media_client.videos

    def settings(index: int, **more: Any) -> dict[str, Any]:
        extra = {
            "seed": index,
            "num_inference_steps": 3 + index % 3,
            "guidance_scale": 1.0 + index,
            "num_frames": 17,
            **more,
        }
        return {
            "model": "film",
            "prompt": f"a large {('red', 'blue')[index % 2]} ball moving right",
            "extra_body": extra,
        }

    def film(index: int) -> Request:
        async def filmed() -> Any:
            job = await videos.create_and_poll(**settings(index), poll_interval_ms=50)
            assert job.status == "completed", job.error
            return frames((await videos.download_content(job.id)).read())

        return filmed

    async def is_deleted_as_it_runs() -> None:
        job = await videos.create(**settings(8, num_inference_steps=100))
        while (await videos.retrieve(job.id)).progress < 1:
            pass
        assert (await videos.delete(job.id)).deleted

    async def is_no_longer_polled() -> None:
        job = await videos.create(**settings(9, num_inference_steps=100))
        try:
            await asyncio.Event().wait()
        finally:
            await videos.delete(job.id)

    alone, together = await alone_and_together(
        [film(index) for index in range(8)],
        cancelled=is_no_longer_polled,
        leaves=is_deleted_as_it_runs,
        refused=lambda: videos.create(**settings(10, num_frames=18)),
    )
    # Frames agree within a byte's rounding; the encoder then may choose other blocks. Each file is that of its own request.
    distances = np.array([[np.abs(one - other).mean() for other in alone] for one in together])
    assert (distances.diagonal() < (distances + np.diag([np.inf] * 8)).min(axis=1) / 5).all(), distances


def pixels(encoded: str) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")).astype(np.int64)


def frames(data: bytes) -> NDArray[np.int64]:
    opened: Any = av  # typed in part
    with opened.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.int64)
