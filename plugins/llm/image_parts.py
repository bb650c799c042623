"""Images in bodies, on the side of the wire: which there are, whether the model reads any, and their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.api import Call
from sixfold.plugins.llm.generation import ImageDetail, ImagePart
from sixfold.plugins.llm.refusals import check_image_count, text_only
from sixfold.plugins.llm.schema import ChatBody

MAX_IMAGE_BYTES = 20 * 1024 * 1024
"""Of an image's file, which is what OpenAI takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """An image that a body names.

    Attributes:
        url: A ``data:`` URL, or an address.
        detail: How closely the model shall look.
        param: Where it stands.
    """

    url: str
    detail: ImageDetail
    param: str


def chat_images(body: ChatBody) -> Iterator[ImageReference]:
    """The images of a chat that `refusals.check_chat` let pass, in order."""
    for index, message in enumerate(body.messages):
        for place, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if part.image_url is not None:
                yield ImageReference(
                    url=part.image_url.url,
                    detail=part.image_url.detail or "auto",
                    param=f"messages.{index}.content.{place}.image_url.url",
                )


async def fetch_images(
    call: Call, wanted: Sequence[ImageReference], details: Mapping[str, str | int | float | bool]
) -> tuple[ImagePart, ...]:
    """The images' files; nothing is fetched for a model that does not read them.

    Args:
        call: Fetches.
        wanted: In order.
        details: The model's.

    Raises:
        InvalidRequest: The model reads text only, or an image can't be had; names the parameter.
    """
    if wanted and not details.get("images"):
        raise text_only(wanted[0].param)
    if wanted:
        check_image_count([reference.param for reference in wanted], int(details.get("max_images", 1)))
    parts: list[ImagePart] = []
    for reference in wanted:
        try:
            fetched = await call.fetch(reference.url, max_bytes=MAX_IMAGE_BYTES)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param=reference.param, code=error.code) from error
        parts.append(ImagePart(data=fetched.data, detail=reference.detail, param=reference.param))
    return tuple(parts)
