"""Reads multipart bodies as they come and within bounds: fields into memory, files into memory or a store."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sixfold.core.errors import InvalidRequest, NotReady, PayloadTooLarge
from sixfold.core.files import FileStore, FileWriter
from sixfold.core.serving.body import BodyStream
from sixfold.core.serving.upload import StoredUpload, Upload

FormValue: TypeAlias = str | Upload | StoredUpload

MAX_PARTS = 256
"""Fields and files of one form."""
MAX_FIELD_BYTES = 1024 * 1024
"""Length of one field that is no file."""
_MAX_HEADER_BYTES = 8 * 1024
_MAX_PART_HEADERS = 16
_PARSE_BYTES = 64 * 1024
"""Parsed without letting others run: about a tenth of a millisecond, and some 30 ms for a body made to be slow."""
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_EXTENDED_NAME = re.compile(r";\s*filename\*\s*=\s*([\w-]+)'[^';]*'([^;\s]+)", re.ASCII | re.IGNORECASE)
_CHARSETS = ("utf-8", "iso-8859-1")
"""RFC 5987's. Other codecs of Python are no charsets, or make text that cannot be encoded again."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class FormItem:
    """One field or file, in the order of the body."""

    name: str
    value: FormValue


def discard(items: Iterable[FormItem], store: FileStore) -> None:
    """Removes the files of a form that nobody will use. Blocks for the disk."""
    for item in items:
        if isinstance(item.value, StoredUpload):
            store.delete(item.value.file_id)


async def read_multipart(stream: BodyStream, headers: Mapping[str, str], store: FileStore | None) -> list[FormItem]:
    """Reads a body; see `form_reader.read_form`, whose errors it raises."""
    _, options = parse_options_header(headers["content-type"])
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise _malformed("the content-type header has no boundary")
    parts = _Parts(store)
    try:
        await _parse(stream, boundary, parts)
    except BaseException:
        await asyncio.to_thread(parts.discard)
        raise
    return parts.items


async def _parse(stream: BodyStream, boundary: bytes, parts: _Parts) -> None:
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
                "on_part_end": parts.end,
                "on_end": parts.finish,
            },
            max_header_count=_MAX_PART_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )
        async for chunk in stream:
            for start in range(0, len(chunk), _PARSE_BYTES):
                if start:
                    await asyncio.sleep(0)
                piece = chunk[start : start + _PARSE_BYTES] if len(chunk) > _PARSE_BYTES else chunk
                if parts.in_memory:
                    parser.write(piece)
                else:
                    await _write_in_thread(parser, piece)
    except FormParserError as failure:
        await stream.linger()
        raise _malformed(str(failure)[:200]) from None
    except (InvalidRequest, PayloadTooLarge, NotReady):
        await stream.linger()
        raise
    if not parts.complete:
        raise _malformed("it ends before its last boundary")


async def _write_in_thread(parser: MultipartParser, piece: bytes) -> None:
    """Parses a piece that goes to a disk. Cancelled, it waits for that: what is discarded must not be written to any more."""
    writing = asyncio.ensure_future(asyncio.to_thread(parser.write, piece))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing})
        raise


class _Parts:
    """Collects the parser's calls into items. One per body.

    Args:
        store: For files; None for memory.
    """

    def __init__(self, store: FileStore | None) -> None:
        self._store = store
        self._writer: FileWriter | None = None
        self.items: list[FormItem] = []
        self.complete = False
        self._headers: dict[str, bytes] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._name = ""
        self._filename: str | None = None
        self._sink = io.BytesIO()

    @property
    def in_memory(self) -> bool:
        """Whether no call waits for a disk."""
        return self._store is None

    def discard(self) -> None:
        """Removes what went to the store."""
        if self._writer is not None:
            self._writer.abort()
        if self._store is not None:
            discard(self.items, self._store)

    def begin(self) -> None:
        if len(self.items) >= MAX_PARTS:
            raise too_many()
        self._headers = {}
        self._sink = io.BytesIO()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def headers_finished(self) -> None:
        disposition, options = parse_options_header(self._headers.get("content-disposition", b""))
        if disposition != b"form-data" or b"name" not in options:
            raise _malformed("a part has no 'content-disposition: form-data' with a name")
        encoding = self._headers.get("content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise _malformed("a part has a content-transfer-encoding; send the bytes as they are")
        self._name = _text(options[b"name"])
        self._filename = _filename(self._headers["content-disposition"], options.get(b"filename"))
        if self._filename is not None and self._store is not None:
            self._writer = self._store.create()

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._writer is not None:
            self._writer.write(memoryview(data)[start:end])
            return
        self._sink.write(memoryview(data)[start:end])
        if self._filename is None and self._sink.tell() > MAX_FIELD_BYTES:
            raise PayloadTooLarge(
                f"The field {self._name[:100]!r} is longer than {MAX_FIELD_BYTES} bytes. Send it as a file or shorten it.",
                param=self._name[:100],
            )

    def end(self) -> None:
        if self._writer is not None:
            self._end_stored(self._writer)
            return
        data = self._sink.getvalue()  # shares the buffer: no copy
        self._sink = io.BytesIO()
        if self._filename is None:
            self.items.append(FormItem(self._name, _field_text(self._name, data)))
        elif self._filename or data:  # else a browser's file input without a file
            self.items.append(FormItem(self._name, Upload(self._filename, self._kind(), data)))

    def _end_stored(self, writer: FileWriter) -> None:
        if not self._filename and not writer.num_bytes:
            writer.abort()
        else:
            upload = StoredUpload(self._filename or "", self._kind(), writer.commit(), writer.num_bytes)
            self.items.append(FormItem(self._name, upload))
        self._writer = None  # not before: where commit raises, discard gives the writer up

    def _kind(self) -> str:
        kind = self._headers.get("content-type", b"").decode("latin-1").strip().lower()
        return kind[:200] or "application/octet-stream"

    def finish(self) -> None:
        self.complete = True


def _filename(header: bytes, plain: bytes | None) -> str | None:
    """The last part of the file's name; None if there is none, so that the part is no file."""
    name = None if plain is None else _text(plain)
    extended = _EXTENDED_NAME.search(_QUOTED.sub('""', header.decode("latin-1")))
    if extended is not None:
        charset = extended[1].lower()
        try:
            if charset not in _CHARSETS:
                raise LookupError(charset)
            name = unquote_to_bytes(extended[2]).decode(charset)
        except (LookupError, UnicodeDecodeError):
            name = name or ""
    if name is None:
        return None
    base = _CONTROL.sub("", name.replace("\\", "/").rpartition("/")[2])
    return "" if base in (".", "..") else base[-255:]


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _field_text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"The field {name[:100]!r} is not UTF-8 text.", param=name[:100]) from None


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The request body is not valid multipart/form-data: {reason}.", code="invalid_form")


def too_many() -> InvalidRequest:
    """The error of a form with more than `MAX_PARTS`."""
    return InvalidRequest(f"The form has more than {MAX_PARTS} parts. Send fewer.", code="invalid_form")
