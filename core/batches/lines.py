"""Reads the lines of a batch's input file: all once, to refuse a file that is wrong, then each when its turn has come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from sixfold.core.batches.records import LineError

MAX_ERRORS = 100
_MAX_ID = 512
_MAX_MODEL = 512
"""Characters; names are held in memory while a file is read and its lines run."""
_NAMES = ("custom_id", "method", "url", "body")


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line, as OpenAI has it."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct, frozen=True):
    """What must be known of a body before it is asked for."""

    model: str
    stream: bool | None = None


@dataclass(frozen=True, slots=True)
class LineRef:
    """Where a line is.

    Attributes:
        number: From 1.
        offset: Of its first byte.
        num_bytes: Without its end.
    """

    number: int
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a file holds.

    Attributes:
        lines: In order; those that are wrong are missing.
        errors: The first `MAX_ERRORS` mistakes.
        model: The model that all lines name; None where they differ.
    """

    lines: tuple[LineRef, ...]
    errors: tuple[LineError, ...]
    model: str | None


def scan(path: Path, *, endpoint: str, max_lines: int, max_line_bytes: int) -> Scan:
    """Checks a whole file. Blocks for the disk; holds one line at a time in memory.

    Args:
        path: The file.
        endpoint: What every line must ask for.
        max_lines: A file of more is refused.
        max_line_bytes: A line of more is refused.
    """
    lines: list[LineRef] = []
    errors: list[LineError] = []
    models: set[str] = set()
    first_line_of: dict[str, int] = {}
    with path.open("rb") as file:
        for ref, data in _read(file, max_line_bytes):
            if len(lines) >= max_lines:
                message = f"The file has more than {max_lines} lines. Split it into several batches."
                errors.append(LineError(code="too_many_lines", message=message, line=ref.number))
                break
            found = _check(data, ref, endpoint, max_line_bytes)
            if isinstance(found, LineError):
                errors.append(found)
            else:
                custom_id, model = found
                first = first_line_of.setdefault(custom_id, ref.number)
                if first == ref.number:
                    lines.append(ref)
                    models.add(model)
                else:
                    message = f"The custom_id {custom_id[:100]!r} is that of line {first}, too. Give each line its own."
                    errors.append(
                        LineError(code="duplicate_custom_id", message=message, line=ref.number, param="custom_id")
                    )
            if len(errors) >= MAX_ERRORS:
                break
    if not lines and not errors:
        errors.append(LineError(code="empty_file", message="The file has no lines. Write one JSON object a line."))
    return Scan(lines=tuple(lines), errors=tuple(errors), model=models.pop() if len(models) == 1 else None)


def read_line(path: Path, ref: LineRef) -> Line:
    """A line that `scan` found to be right. Blocks for the disk."""
    with path.open("rb") as file:
        file.seek(ref.offset)
        return msgspec.json.decode(file.read(ref.num_bytes), type=Line)


def model_of(line: Line) -> str:
    """The model that a line asks for."""
    return msgspec.json.decode(line.body, type=_Body).model


def named_model(data: bytes) -> str | None:
    """The model that a line asks for, as it came in a file; None where it is no line that would be run."""
    try:
        return model_of(msgspec.json.decode(data, type=Line))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _read(file: BinaryIO, max_line_bytes: int) -> Iterator[tuple[LineRef, bytes]]:
    """Each line that is not blank, without its end; of one that is too long a part that is too long as well."""
    number = offset = 0
    while data := file.readline(max_line_bytes + 2):
        number += 1
        num_read = len(data)
        while not data.endswith(b"\n") and (rest := file.readline(1 << 20)):  # the rest of a line that is too long
            num_read += len(rest)
            if rest.endswith(b"\n"):
                break
        text = data.rstrip(b"\r\n")
        if text.strip():
            yield LineRef(number, offset, len(text)), text
        offset += num_read


def _check(data: bytes, ref: LineRef, endpoint: str, max_line_bytes: int) -> LineError | tuple[str, str]:
    """The custom_id and the model of a line, or what is wrong with it."""

    def wrong(code: str, message: str, param: str | None = None) -> LineError:
        return LineError(code=code, message=message, line=ref.number, param=param)

    if len(data) > max_line_bytes:
        return wrong("line_too_long", f"The line is longer than {max_line_bytes} bytes. Send less in one request.")
    try:
        line = msgspec.json.decode(data, type=Line)
    except msgspec.ValidationError as failure:
        return wrong("invalid_line", f"{failure}. A line has exactly {', '.join(_NAMES)}.", _param(str(failure)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
        return wrong("invalid_json_line", f"The line is not valid JSON: {str(failure)[:200]}.")
    if not 0 < len(line.custom_id) <= _MAX_ID:
        return wrong("invalid_custom_id", f"custom_id must have 1 to {_MAX_ID} characters.", "custom_id")
    if line.method != "POST":
        return wrong("invalid_method", f"method must be 'POST', not {line.method[:40]!r}.", "method")
    if line.url != endpoint:
        message = (
            f"url is {line.url[:100]!r}, but the batch is for {endpoint!r}. All lines of a batch have its endpoint."
        )
        return wrong("mismatched_url", message, "url")
    try:
        body = msgspec.json.decode(line.body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
        return wrong("invalid_body", f"body: {failure}. It is an object with at least a model.", "body")
    if len(body.model) > _MAX_MODEL:
        return wrong("invalid_body", f"body.model must have at most {_MAX_MODEL} characters.", "body.model")
    if body.stream:
        return wrong("stream_unsupported", "Batches hold whole answers. Remove 'stream'.", "body.stream")
    return line.custom_id, body.model


def _param(message: str) -> str | None:
    return next((name for name in _NAMES if f"`{name}`" in message or f"$.{name}" in message), None)
