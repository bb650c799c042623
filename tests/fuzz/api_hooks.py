"""What schemathesis is told of this server: which models there are, how little is enough, and where to write its figures.

Loaded by schemathesis itself (``SCHEMATHESIS_HOOKS``), in a process of its own.
"""

from __future__ import annotations

import importlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, cast
from zlib import crc32

# By name: the checkers of a machine without it must not miss it.
_SCHEMATHESIS: Any = importlib.import_module("schemathesis")
_MODELS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "chat",
    "/v1/responses": "chat",
    "/v1/embeddings": "embed",
    "/v1/rerank": "embed",
    "/v2/rerank": "embed",
    "/rerank": "embed",
    "/v1/score": "embed",
    "/v1/audio/speech": "speak",
    "/v1/audio/transcriptions": "hear",
    "/v1/audio/translations": "hear",
    "/v1/images/generations": "draw",
    "/v1/images/edits": "draw",
    "/v1/images/variations": "draw",
    "/v1/videos": "film",
}
_SMALL = {"max_tokens": 8, "max_completion_tokens": 8, "max_output_tokens": 8, "n": 2, "num_inference_steps": 2}
"""Whatever more is asked for is a matter of time, not of reading: the machine is small."""
_MAX_TEXT = 300
_FILE = Path(os.environ.get("SIXFOLD_FUZZ_FIGURES", "/dev/null"))
_SOUND = Path(os.environ.get("SIXFOLD_FUZZ_SOUND", "/dev/null"))
_SAVE_EVERY = 20


class Figures:
    """Counts of what was answered; written every few answers."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}
        self.good: Counter[str] = Counter()
        self.errors: dict[str, list[str]] = {}

    def count(self, operation: str, status: int, seconds: float) -> None:
        """Adds an answer."""
        self.statuses[str(status)] += 1
        self.operations[operation] += 1
        self.good[operation] += status < 300
        if status >= 500 and str(status) not in self.errors.setdefault(operation, []):
            self.errors[operation].append(str(status))
            self.save()
        self.slowest[operation] = max(self.slowest.get(operation, 0.0), seconds)
        if sum(self.statuses.values()) % _SAVE_EVERY == 0:
            self.save()

    def save(self) -> None:
        """Writes all."""
        _FILE.write_text(json.dumps(vars(self), indent=1))


FIGURES = Figures()


def before_call(_context: Any, case: Any, _kwargs: dict[str, Any]) -> None:
    """Lets three of four requests reach a model, with little to do there; the fourth goes as it was drawn."""
    given: object = case.body
    if not isinstance(given, dict):
        return
    body = cast("dict[str, Any]", given)
    if crc32(repr(sorted(map(str, body))).encode() + str(case.id).encode()) % 4 == 0:
        _bound(body, case.operation.path)
        return
    name = _MODELS.get(case.operation.path)
    if name is not None and isinstance(body.get("model", ""), str):
        body["model"] = name
    if isinstance(body.get("file"), bytes) and "audio" in case.operation.path:
        body["file"] = _SOUND.read_bytes()
    _bound(body, case.operation.path)


def _bound(body: dict[str, Any], path: str) -> None:
    if path in ("/v1/chat/completions", "/v1/completions"):
        body.setdefault("max_tokens", 8)
    elif path == "/v1/responses":
        body.setdefault("max_output_tokens", 16)
    elif path in ("/v1/images/generations", "/v1/videos"):
        body.setdefault("num_inference_steps", 2)
    for name, most in _SMALL.items():
        given = body.get(name)
        if isinstance(given, int) and given > most:
            body[name] = most
    for name in ("input", "prompt"):
        given = body.get(name)
        if isinstance(given, str) and len(given) > _MAX_TEXT and path == "/v1/audio/speech":
            body[name] = given[:_MAX_TEXT]


def after_call(_context: Any, case: Any, response: Any) -> None:
    """Counts the answer."""
    FIGURES.count(case.operation.label, response.status_code, response.elapsed)


_SCHEMATHESIS.hook(before_call)
_SCHEMATHESIS.hook(after_call)
