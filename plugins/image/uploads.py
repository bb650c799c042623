"""The bodies of edits and variations: multipart forms with files, or JSON with data URLs."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.api import Call, Upload
from sixfold.plugins.image.bodies import PictureBody, StreamedBody

_MAX_FETCH_BYTES = 50 * 1024 * 1024
_MAX_IMAGES = 16

_Strength = Annotated[float, Field(gt=0.0, le=1.0)]


class ImageReference(BaseModel):
    """An image in a JSON body."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_url: str
    """A ``data:`` URL, or an address that the server's configuration allows."""


class EditsForm(StreamedBody):
    """The multipart body of ``POST /v1/images/edits``."""

    image: Annotated[list[Upload], Field(min_length=1, max_length=_MAX_IMAGES)]
    """PNG, JPEG, WebP, GIF, BMP or TIFF. Most models start from one."""
    mask: Upload | None = None
    """As large as the image; what is transparent in it is drawn anew."""
    strength: _Strength | None = None
    """How much of the image is drawn anew."""


class EditsBody(StreamedBody):
    """The JSON body of ``POST /v1/images/edits``."""

    images: Annotated[list[ImageReference], Field(min_length=1, max_length=_MAX_IMAGES)]
    """See `EditsForm`."""
    mask: ImageReference | None = None
    """See `EditsForm`."""
    strength: _Strength | None = None
    """See `EditsForm`."""


class VariationsForm(PictureBody):
    """The multipart body of ``POST /v1/images/variations``."""

    image: Upload
    """What to vary."""
    strength: _Strength | None = None
    """How much of the image is drawn anew; 0.6 unless given."""


async def edit_parts(call: Call) -> tuple[EditsForm | EditsBody, tuple[bytes, ...], bytes | None]:
    """Reads a body of either kind: (body, images, mask).

    Raises:
        InvalidRequest: With the name of the field.
    """
    if call.is_form:
        form = await call.form(EditsForm)
        return form, tuple(upload.data for upload in form.image), None if form.mask is None else form.mask.data
    body = await call.json(EditsBody)
    images = [await _fetch(call, reference, "images") for reference in body.images]
    return body, tuple(images), None if body.mask is None else await _fetch(call, body.mask, "mask")


async def _fetch(call: Call, reference: ImageReference, param: str) -> bytes:
    try:
        return (await call.fetch(reference.image_url, max_bytes=_MAX_FETCH_BYTES)).data
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=param, code=error.code) from error
