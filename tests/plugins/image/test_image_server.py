"""The official OpenAI client against a real server with a real worker process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import httpx
import numpy as np
import openai
import pytest
import yaml
from PIL import Image

from tests.plugins.image.conftest import pixels, png
from tests.servers import DemoServer, start_server, stop_server
from tests.tiny_adapters import save_adapter

FAST: dict[str, Any] = {"num_inference_steps": 3, "seed": 5}


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    root = tmp_path_factory.mktemp("server")
    untyped: Any = diffusers
    stock = untyped.StableDiffusionPipeline.from_pretrained(folder)
    adapter = save_adapter(stock, root / "ink", seed=1, parts={"unet": ("to_q", "to_v")})
    options = {"max_pixels": 4096, "num_inference_steps": 4, "lora": {"ink": f"file:{adapter}"}}
    data = {
        "models": {"draw": {"source": f"file:{folder}", "options": options}},
        "server": {"port": 0, "data_dir": str(root / "data")},
    }
    config = root / "image.yaml"
    config.write_text(yaml.safe_dump(data))
    server = start_server(config)
    try:
        yield server
    finally:
        assert stop_server(server) == 0


@pytest.fixture
def client(server: DemoServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def picture_of(item: Any) -> Any:
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def test_generate_answers_what_was_asked(client: openai.OpenAI) -> None:
    answer: Any = client.images.generate(
        model="draw",
        prompt="a red ball",
        n=2,
        size="16x32",
        quality="low",
        output_format="webp",
        output_compression=80,
        extra_body={"seed": 11},
    )
    assert (answer.size, answer.quality, answer.output_format, answer.background) == ("16x32", "low", "webp", "opaque")
    assert [item.seed for item in answer.data] == [11, 12]
    for item in answer.data:
        assert (picture_of(item).format, picture_of(item).size) == ("WEBP", (16, 32))
    usage = answer.usage
    assert usage.input_tokens == usage.input_tokens_details.text_tokens > 3
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_the_same_seed_draws_the_same_picture_whoever_draws_beside_it(
    client: openai.OpenAI, server: DemoServer
) -> None:
    def ask(prompt: str, **more: Any) -> Any:
        return client.images.generate(model="draw", prompt=prompt, extra_body={**FAST, **more}).data

    async def many() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as both:
            bodies = [{**FAST, "seed": 5 + index, "num_inference_steps": 3 + index % 3} for index in range(8)]
            return await asyncio.gather(
                *(both.images.generate(model="draw", prompt="a cat", extra_body=body) for body in bodies)
            )

    together = asyncio.run(many())
    for index, answer in enumerate(together):
        (single,) = ask("a cat", seed=5 + index, num_inference_steps=3 + index % 3)
        difference = pixels(base64.b64decode(single.b64_json)) - pixels(base64.b64decode(answer.data[0].b64_json))
        assert np.abs(difference).max() <= 1


def test_an_adapter_is_chosen_by_the_models_name_or_by_a_field_also_of_a_form(
    client: openai.OpenAI, server: DemoServer
) -> None:
    def ask(model: str = "draw", **more: Any) -> Any:
        answer: Any = client.images.generate(model=model, prompt="a", extra_body={**FAST, **more})
        return pixels(base64.b64decode(answer.data[0].b64_json))

    plain, named = ask(), ask("draw:ink")
    assert np.abs(plain - named).max() > 8
    np.testing.assert_array_equal(named, ask(lora=[{"name": "ink"}]))
    np.testing.assert_array_equal(plain, ask(lora=[{"name": "ink", "scale": 0}]))
    fields = {"model": "draw", "prompt": "a", "lora": '[{"name": "chalk"}]'}
    answer = httpx.post(f"{server.url}/v1/images/edits", data=fields, files={"image": ("a.png", png())}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora")
    with pytest.raises(openai.NotFoundError, match="no adapter 'chalk', only ink"):
        ask("draw:chalk")


def test_a_url_leads_to_the_file(client: openai.OpenAI) -> None:
    answer: Any = client.images.generate(model="draw", prompt="a", response_format="url", extra_body=FAST)
    found = httpx.get(answer.data[0].url)
    assert found.status_code == 200
    assert found.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(found.content)).size == (32, 32)
    assert httpx.get(answer.data[0].url[:-12] + "AAAAAAAA.png").status_code == 404


def test_a_stream_sends_partial_images_and_then_the_picture(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        model="draw", prompt="a", stream=True, partial_images=2, extra_body={"num_inference_steps": 8, "seed": 1}
    )
    events: list[Any] = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert events[2].usage.total_tokens > 0
    shapes = {pixels(base64.b64decode(event.b64_json)).shape for event in events}
    assert shapes == {(32, 32, 3)}


def test_a_stream_tells_each_step_if_it_is_asked_to(server: DemoServer) -> None:
    body = {"model": "draw", "prompt": "a", "n": 2, "stream": True, "progress": True, **FAST}
    body |= {"partial_images": 1, "preview": "linear"}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line[:6] == "data: "]
    steps = [event for event in events if event["type"] == "image_generation.progress"]
    for index in range(2):
        own = [event for event in steps if event["image_index"] == index]
        assert [(event["step"], event["num_steps"]) for event in own] == [(1, 3), (2, 3), (3, 3)]
    others = [event["type"] for event in events if event not in steps]
    assert sorted(others) == ["image_generation.completed"] * 2 + ["image_generation.partial_image"] * 2


def test_edits_take_a_form_with_image_and_mask(client: openai.OpenAI) -> None:
    answer: Any = client.images.edit(
        model="draw",
        prompt="a",
        image=("in.png", png(32, 32), "image/png"),
        mask=("mask.png", png(32, 32, hole=True), "image/png"),
        extra_body={**FAST, "strength": 1.0},
    )
    assert picture_of(answer.data[0]).size == (32, 32)
    assert answer.usage.input_tokens_details.image_tokens > 0


def test_edits_take_json_with_data_urls_and_a_list_of_images_and_streams(
    server: DemoServer, client: openai.OpenAI
) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(20, 40)).decode()
    body = {"model": "draw", "prompt": "a", "images": [{"image_url": url}], **FAST}
    answer = httpx.post(f"{server.url}/v1/images/edits", json=body, timeout=60).json()
    assert answer["size"] == "20x40"
    stream = client.images.edit(
        model="draw", prompt="a", image=[png()], stream=True, partial_images=1, extra_body={**FAST, "strength": 1.0}
    )
    events: list[Any] = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_a_variation_is_like_its_image_and_not_the_same(server: DemoServer) -> None:
    answer = httpx.post(
        f"{server.url}/v1/images/variations",
        data={"model": "draw", "n": "2", "seed": "3"},
        files={"image": ("a.png", png(), "image/png")},
        timeout=60,
    ).json()
    first, second = (pixels(base64.b64decode(item["b64_json"])) for item in answer["data"])
    assert np.abs(first - second).max() > 4


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"size": "33x33"}, "size"),
        ({"size": "large"}, "size"),
        ({"background": "transparent"}, "background"),
        ({"output_compression": 50}, "output_compression"),
        ({"partial_images": 2}, "partial_images"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"preview": "linear"}, "preview"),
        ({"progress": True}, "progress"),
        ({"style": "vivid"}, "style"),
        ({"cfg": 3}, "cfg"),
        ({"scheduler": "Magic"}, "scheduler"),
        ({"lora": [{"name": "chalk"}]}, "lora"),
        ({"lora": [{"name": "ink", "scale": 11}]}, "lora.0.scale"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 200}, "prompt"),
        ({"stream": True, "size": "31x31"}, "size"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(server: DemoServer, body: dict[str, Any], param: str) -> None:
    answer = httpx.post(
        f"{server.url}/v1/images/generations", json={"model": "draw", "prompt": "a", **body}, timeout=60
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def huge_png() -> bytes:
    """A file of a few hundred bytes that says it has 60,000 x 60,000 pixels."""
    small = bytearray(png(8, 8))
    small[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(small)


@pytest.mark.parametrize(
    "data",
    [b"", b"%PDF-1.7 no picture", b"\x00\x00\x00\x18ftypmp42" + bytes(200), png()[:100], huge_png()],
    ids=["empty", "pdf", "video", "cut", "bomb"],
)
def test_an_upload_that_is_no_good_image_is_a_400_that_names_it(server: DemoServer, data: bytes) -> None:
    answer = httpx.post(
        f"{server.url}/v1/images/edits",
        data={"model": "draw", "prompt": "a"},
        files={"image": ("a.png", data, "image/png")},
        timeout=60,
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "image"


def test_addresses_are_not_fetched_unless_the_operator_allows_them(server: DemoServer) -> None:
    body = {"model": "draw", "prompt": "a", "images": [{"image_url": "http://127.0.0.1:1/a.png"}]}
    answer = httpx.post(f"{server.url}/v1/images/edits", json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "images")
