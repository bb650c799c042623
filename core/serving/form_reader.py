"""Reads form bodies from the wire, within bounds: multipart with files, and urlencoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.types import Receive

from sixfold.core.errors import InvalidRequest
from sixfold.core.files import FileStore
from sixfold.core.serving.body import BodyStream, check_encoding
from sixfold.core.serving.multipart import MAX_PARTS as MAX_PARTS
from sixfold.core.serving.multipart import FormItem as FormItem
from sixfold.core.serving.multipart import read_multipart, too_many

_FORM_KINDS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclass(frozen=True, slots=True, kw_only=True)
class FormLimits:
    """Bounds of a form body.

    Attributes:
        max_bytes: Of a urlencoded body.
        max_upload_bytes: Of a multipart body.
        timeout_s: To arrive, and one second more for each `body.PACE_BYTES` that arrived.
    """

    max_bytes: int
    max_upload_bytes: int
    timeout_s: float


def content_kind(headers: Mapping[str, str]) -> str:
    """The media type of the body without parameters, in lower case."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def is_form(headers: Mapping[str, str]) -> bool:
    """Whether the body is said to be a form."""
    return content_kind(headers) in _FORM_KINDS


async def read_form(
    receive: Receive, headers: Mapping[str, str], limits: FormLimits, store: FileStore | None = None
) -> list[FormItem]:
    """Reads a form body.

    Args:
        receive: The ASGI channel.
        headers: Of the request.
        limits: Its bounds.
        store: Where files go as they come; in memory unless given. Where this raises, none of them is left.

    Raises:
        InvalidRequest: It is no form, is malformed, has too many parts, or came too slowly.
        PayloadTooLarge: It, or one field of it, is too long.
        NotReady: The store is full.
        RequestCancelled: The client went away.
    """
    check_encoding(headers)
    kind = content_kind(headers)
    if kind == "multipart/form-data":
        stream = BodyStream(receive, headers, max_bytes=limits.max_upload_bytes, timeout_s=limits.timeout_s)
        return await read_multipart(stream, headers, store)
    if kind == "application/x-www-form-urlencoded":
        stream = BodyStream(receive, headers, max_bytes=limits.max_bytes, timeout_s=limits.timeout_s)
        return parse_urlencoded(b"".join([chunk async for chunk in stream]))
    raise InvalidRequest(
        f"Unsupported content type {kind[:80]!r}. Send the fields and files as multipart/form-data.",
        code="unsupported_content_type",
    )


def parse_urlencoded(text: bytes) -> list[FormItem]:
    """The fields of a urlencoded body or a query string.

    Raises:
        InvalidRequest: Too many fields, or they are not UTF-8.
    """
    try:
        pairs = parse_qsl(text.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_PARTS, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest("The fields are not percent-encoded UTF-8.", code="invalid_form") from None
    except ValueError:
        raise too_many() from None
    return [FormItem(name, value) for name, value in pairs]
