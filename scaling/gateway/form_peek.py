"""The fields of a form that the gateway must know, found by the rules by which servers read forms, without keeping its files.

A field that the gateway reads otherwise than the server behind it would be a way around a key's permissions. So the parser is the
servers' own, and what two servers could read in two ways is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.form_reader import MAX_PARTS, content_kind, parse_urlencoded

NAMES = ("model", "response_format")
"""Fields that the gateway must know of any form."""
Sink = Callable[[str, bytes], None]
"""Takes a field's name and a piece of its value."""
_MAX_VALUE_BYTES = 1024
"""Kept of one field; what is longer is nothing that the gateway knows."""
_PARSE_BYTES = 64 * 1024
"""Parsed without letting others run: about a tenth of a millisecond."""


async def peek_form(
    headers: Mapping[str, str], body: bytes, *, names: Collection[str] = NAMES, sink: Sink | None = None
) -> Mapping[str, str]:
    """The fields of these names, as far as the form has them.

    Args:
        headers: Lower-case names.
        body: All of the form.
        names: Which fields.
        sink: Given all of the fields of a multipart form, piece by piece.

    Raises:
        InvalidRequest: It is malformed, or has one of the fields twice.
    """
    if content_kind(headers) == "multipart/form-data":
        return await _peek_multipart(headers["content-type"], body, names, sink)
    return peek_urlencoded(body, names=names)


def peek_urlencoded(text: bytes, *, names: Collection[str] = NAMES) -> Mapping[str, str]:
    """The same of a urlencoded body or a query string."""
    return _pick(((item.name, str(item.value)) for item in parse_urlencoded(text)), names)


async def _peek_multipart(
    content_type: str, body: bytes, names: Collection[str], sink: Sink | None
) -> Mapping[str, str]:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise _malformed("the content-type header has no boundary")
    parts = _Parts(sink)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_field,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_headers_finished": parts.headers_finished,
                "on_part_data": parts.data,
                "on_end": parts.finish,
            },
        )
        view = memoryview(body)
        for start in range(0, len(body), _PARSE_BYTES):
            if start:
                await asyncio.sleep(0)
            parser.write(bytes(view[start : start + _PARSE_BYTES]))
    except FormParserError as failure:
        raise _malformed(str(failure)[:200]) from None
    if not parts.complete:
        raise _malformed("it ends before its last boundary")
    return _pick(((name, value.decode("utf-8", "replace")) for name, value in parts.found), names)


class _Parts:
    """Collects the parser's calls. One per body."""

    def __init__(self, sink: Sink | None) -> None:
        self._sink = sink
        self.found: list[tuple[str, bytearray]] = []
        self.complete = False
        self._disposition = b""
        self._header_name = bytearray()
        self._header_value = bytearray()

    def begin(self) -> None:
        if len(self.found) >= MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts. Send fewer.", code="invalid_form")
        self._disposition = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def header_end(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def headers_finished(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name")
        if name is None:
            raise _malformed("a part has no 'content-disposition: form-data' with a name")
        self.found.append((name.decode("latin-1"), bytearray()))

    def data(self, data: bytes, start: int, end: int) -> None:
        name, value = self.found[-1]
        if self._sink is not None:
            self._sink(_plain(name), data[start:end])
        value += data[start : min(end, start + _MAX_VALUE_BYTES - len(value))]

    def finish(self) -> None:
        self.complete = True


def _pick(items: Iterable[tuple[str, str]], names: Collection[str]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for full_name, value in items:
        name = _plain(full_name)
        if name in found:
            raise InvalidRequest(f"Invalid parameter {name!r}: it is given more than once. Give it once.", param=name)
        if name in names:
            found[name] = value
    return found


def _plain(name: str) -> str:
    """Servers read model[] and model[0] as they read model."""
    return name.partition("[")[0]


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The request body is not valid multipart/form-data: {reason}.", code="invalid_form")
