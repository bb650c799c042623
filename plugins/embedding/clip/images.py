"""From what clients send as an image to the bytes of its file."""

from __future__ import annotations

import base64
import binascii

from sixfold.core.errors import InvalidRequest


def decode_base64(text: str, param: str) -> bytes:
    """The bytes of a base64 text or of a ``data:`` URL.

    Raises:
        InvalidRequest: It is neither, or empty.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InvalidRequest(f"{param}: a data URL must hold base64: data:image/png;base64,...", param=param)
        kind = head.removeprefix("data:").partition(";")[0]
        if kind and not kind.startswith("image/"):
            raise InvalidRequest(f"{param}: {kind[:60]!r} is no image. Send a picture.", param=param)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{param} is neither base64, nor a data URL, nor an http URL.", param=param) from None
    if not data:
        raise InvalidRequest(f"{param} is empty. Send a picture.", param=param)
    return data
