"""How a process of Sixfold logs: lines for people, or one JSON object a line for machines; never a secret.

Code logs through ``logging`` as ever. What a line is about goes into ``extra`` under the names in `FIELDS`.
"""

from __future__ import annotations

import datetime
import logging
import re
import sys
from collections.abc import Mapping
from typing import Literal

import msgspec

LogFormat = Literal["text", "json"]
FORMATS: tuple[LogFormat, ...] = ("text", "json")

FIELDS = (
    "request_id",
    "trace_id",
    "model",
    "replica",
    "operation",
    "tenant",
    "method",
    "route",
    "status",
    "error",
    "duration_s",
    "first_byte_s",
    "receive_s",
    "prepare_s",
    "queue_s",
    "inference_s",
    "send_wait_s",
    "usage",
)
"""Keys of ``extra`` that JSON lines take over, in this order."""

_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_SECRETS = re.compile(
    r"(?P<name>\b(?:bearer|basic)\s+|\b(?:api[_-]?key|token|secret|password|authorization)[\"']?\s*[=:]\s*[\"']?(?:(?:bearer|basic)\s+)?)"
    r"(?P<value>[^\s\"',;&)}\]]{6,})"
    r"|\b(?P<prefix>sk-|hf_)[A-Za-z0-9_\-]{8,}"
    # Without the scheme's own letters: else each letter of a long word would be tried as their beginning.
    r"|(?P<scheme>://)[^\s/@:]+:[^\s/@]+@",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Takes bearer keys, passwords in addresses and their like out of a line: the last net, for what libraries write."""
    return _SECRETS.sub(_redacted, text)


def _redacted(match: re.Match[str]) -> str:
    if match["scheme"]:
        return f"{match['scheme']}***@"
    return f"{match['name'] or match['prefix'] or ''}***"


class TextFormatter(logging.Formatter):
    """Lines for people."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines where there is a traceback."""
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, tracebacks included.

    Attributes:
        fields: What all lines of this process hold: a worker's model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fields: Mapping[str, str | int] = {}

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            **self.fields,
        }
        for name in FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                line[name] = round(value, 6) if isinstance(value, float) else value
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return msgspec.json.encode(line, enc_hook=str).decode()


class PresentStderrHandler(logging.Handler):
    """Writes to what is ``sys.stderr`` at the moment: while bars are drawn, that is a proxy that prints above them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line. Where stderr is closed, there is nobody to tell; a record that can't be made a line is told there in
        its place, as `logging` does, and never raises in whoever logged it."""
        try:
            line = self.format(record)
        except Exception:  # whatever a library gave to be formatted
            self.handleError(record)
            return
        try:
            print(line, file=sys.stderr, flush=True)
        except (ValueError, OSError):
            return


def configure_logging(level: str, log_format: LogFormat = "text", **fields: str | int) -> None:
    """Sends log records of the process to standard error, from ``level`` on. Called once, by a program's entry.

    Args:
        level: Of `logging`, in any case.
        log_format: See `FORMATS`.
        fields: What each JSON line shall hold.
    """
    handler = PresentStderrHandler()
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    add_log_fields(**fields)
    # It logs each file event: with the log in the folder of the configuration, each line would cause the next.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each broken body, with bytes of it
    # It warns, once for each kind, that pictures are read by Pillow, which is what is wanted here: nothing needs torchvision.
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)


def add_log_fields(**fields: str | int) -> None:
    """Adds to what each JSON line of this process holds; lines for people stay as they are."""
    for formatter in _formatters():
        if isinstance(formatter, JsonFormatter):
            formatter.fields = {**formatter.fields, **fields}


def log_format() -> LogFormat:
    """How this process logs; the processes that it starts do the same."""
    return "json" if any(isinstance(formatter, JsonFormatter) for formatter in _formatters()) else "text"


def _formatters() -> list[logging.Formatter | None]:
    return [handler.formatter for handler in logging.getLogger().handlers]
