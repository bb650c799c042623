"""Images in bodies of chats and responses: what reaches the model, and what is refused, by the place where it stands."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.api import Call
from sixfold.core.serving.fetch import Fetcher
from sixfold.plugins.llm.api import LlmAPI
from sixfold.plugins.llm.generation import ChatInput, ImagePart
from sixfold.plugins.llm.image_parts import MAX_IMAGE_BYTES, fetch_images
from sixfold.plugins.llm.responses_messages import response_images
from sixfold.plugins.llm.responses_requests import check_response, input_items, response_input
from sixfold.plugins.llm.responses_schema import ResponsesBody
from tests.plugins.llm.wire_fakes import FakeCall, chat, finished

SEES: Mapping[str, str | int | float | bool] = {"images": True, "max_images": 2}
PNG = b"\x89PNG not looked at here"
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def image(**more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": URL} | more}


def asking(*parts: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": role, "content": list(parts)}]}


async def test_text_and_images_reach_the_model_in_their_order() -> None:
    body = asking({"type": "text", "text": "Is "}, image(detail="low"), {"type": "text", "text": " like "}, image())
    call, _answer = await chat(body, [[finished("no")]], SEES)
    assert isinstance(call.input, ChatInput)
    (message,) = call.input.messages
    assert message.content == "Is  like "
    first, low, then, auto = message.parts
    assert (first, then) == ("Is ", " like ")
    assert low == ImagePart(data=PNG, detail="low", param="messages.0.content.1.image_url.url")
    assert auto == ImagePart(data=PNG, param="messages.0.content.3.image_url.url")


BAD: list[tuple[dict[str, Any], Mapping[str, str | int | float | bool], str, str]] = [
    (asking(image()), {}, "messages.0.content.0.image_url.url", "reads text only"),
    (asking(image(), image(), image()), SEES, "messages.0.content.2.image_url.url", "at most 2"),
    (asking(image(url="data:image/png;base64,%")), SEES, "messages.0.content.0.image_url.url", "not valid base64"),
    (asking(image(url="http://127.0.0.1/x.png")), SEES, "messages.0.content.0.image_url.url", "does not fetch"),
    (asking(image(url="file:///etc/passwd")), SEES, "messages.0.content.0.image_url.url", "http"),
    (asking(image(detail="extreme")), SEES, "messages.0.content.0.image_url.detail", "'auto', 'low' or 'high'"),
    (asking(image(), role="assistant"), SEES, "messages.0.content.0.type", "role 'user'"),
    (asking({"type": "image_url"}), SEES, "messages.0.content.0.image_url", "Missing"),
    (
        asking({"type": "text", "text": "a", "image_url": {"url": URL}}),
        SEES,
        "messages.0.content.0.image_url",
        "Unknown",
    ),
    (asking(image() | {"text": "a"}), SEES, "messages.0.content.0.text", "Unknown"),
]


@pytest.mark.parametrize(("body", "details", "param", "says"), BAD, ids=[f"{p}: {s}" for _, _, p, s in BAD])
async def test_what_is_wrong_with_an_image_is_told_with_its_place(
    body: dict[str, Any], details: Mapping[str, str | int | float | bool], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        await chat(body, [[finished("x")]], details)
    assert (caught.value.status, caught.value.param) == (400, param)


async def test_an_image_larger_than_openai_takes_is_refused_by_its_size() -> None:
    large = "data:image/png;base64," + base64.b64encode(bytes(MAX_IMAGE_BYTES + 1)).decode()
    with pytest.raises(InvalidRequest, match=f"larger than the {MAX_IMAGE_BYTES} bytes"):
        await chat(asking(image(url=large)), [[finished("x")]], SEES)


async def test_addresses_are_fetched_only_from_hosts_that_the_configuration_allows_and_never_from_private_ones() -> (
    None
):
    async def resolve(host: str, port: int) -> list[str]:
        return ["10.1.2.3"]

    class Asking(FakeCall):
        async def fetch(self, url: str, *, max_bytes: int) -> Any:
            return await Fetcher(("pictures.example",), timeout_s=5, resolve=resolve).fetch(url, max_bytes=max_bytes)

    for address, says in (
        ("https://pictures.example/a.png", "cannot be reached"),
        ("https://else.example/", "does not fetch from"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            await LlmAPI().chat(cast(Call, Asking(asking(image(url=address)), (), SEES)))


def responses_body(*content: dict[str, Any], role: str = "user") -> ResponsesBody:
    body = {"model": "m", "input": [{"role": role, "content": list(content)}]}
    return ResponsesBody.model_validate_json(json.dumps(body))


async def test_responses_take_images_beside_text_and_from_the_turns_before() -> None:
    body = responses_body({"type": "input_text", "text": "And "}, {"type": "input_image", "image_url": URL})
    check_response(body)
    earlier = input_items(responses_body({"type": "input_image", "image_url": URL, "detail": "low"}))
    wanted = (*response_images(earlier, "previous_response_id"), *response_images(input_items(body), "input"))
    images = await fetch_images(cast(Call, FakeCall({})), wanted, SEES)
    before, now = response_input(body, earlier, images=images).messages
    assert before.parts == (ImagePart(data=PNG, detail="low", param="previous_response_id.0.content.0.image_url"),)
    assert now.parts == ("And ", ImagePart(data=PNG, param="input.0.content.1.image_url"))


@pytest.mark.parametrize(
    ("part", "role", "param"),
    [
        ({"type": "input_image"}, "user", "input.0.content.0.image_url"),
        ({"type": "input_image", "file_id": "f"}, "user", "input.0.content.0.file_id"),
        ({"type": "input_image", "image_url": URL}, "system", "input.0.content.0.type"),
    ],
)
def test_images_of_responses_that_are_not_served_are_named(part: dict[str, Any], role: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tuple(response_images(input_items(responses_body(part, role=role)), "input"))
    assert caught.value.param == param
