"""What is in an uploaded file, as far as it decides who keeps it: the models of a batch's lines, and the files that they name.

It is read by the rules by which servers read batches, since a line that they would run and the gateway did not see would be a way
around a key's permissions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sixfold.core.batches.lines import named_model
from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.form_reader import content_kind
from sixfold.scaling.gateway.form_peek import NAMES, peek_form

BATCH = "batch"
"""The purpose of a file whose lines will be run."""
_MAX_MODELS = 100
_FILE_ID = re.compile(rb"file-([a-z2-7]{8})_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFacts:
    """An upload.

    Attributes:
        purpose: As the client says; "" if it does not.
        models: That its lines name, if it is for a batch.
        store_ids: Of the files that its lines name.
    """

    purpose: str = ""
    models: frozenset[str] = frozenset()
    store_ids: frozenset[str] = frozenset()


async def peek_upload(headers: Mapping[str, str], body: bytes) -> UploadFacts:
    """Reads the form of ``POST /v1/files``; holds one line of the file beside it.

    Raises:
        InvalidRequest: It is no multipart form, malformed, has a field twice, or names too many models.
    """
    if content_kind(headers) != "multipart/form-data":
        raise InvalidRequest(
            "A file is uploaded as multipart/form-data, with the fields 'file' and 'purpose'.", code="invalid_form"
        )
    lines = _Lines()

    def take(name: str, piece: bytes) -> None:
        if name == "file":
            lines.feed(piece)

    fields = await peek_form(headers, body, names=(*NAMES, "purpose", "file"), sink=take)
    purpose = fields.get("purpose", "")
    if purpose != BATCH:
        return UploadFacts(purpose=purpose)
    lines.end()
    if len(lines.models) > _MAX_MODELS:
        raise InvalidRequest(
            f"The lines name more than {_MAX_MODELS} models. Send a file for each few.",
            param="file",
            code="too_many_models",
        )
    return UploadFacts(purpose=purpose, models=frozenset(lines.models), store_ids=frozenset(lines.store_ids))


class _Lines:
    """Takes a file in pieces, and looks into each line once it is whole."""

    def __init__(self) -> None:
        self.models: set[str] = set()
        self.store_ids: set[str] = set()
        self._pieces: list[bytes] = []

    def feed(self, piece: bytes) -> None:
        first, *others = piece.split(b"\n")
        self._pieces.append(first)
        for each in others:
            self.end()
            self._pieces.append(each)

    def end(self) -> None:
        """What came since the last line's end is a line."""
        line = b"".join(self._pieces).rstrip(b"\r\n")
        self._pieces.clear()
        model = named_model(line) if line.strip() else None
        if model is not None and len(self.models) <= _MAX_MODELS:
            self.models.add(model)
            self.store_ids.update(each.decode() for each in _FILE_ID.findall(line))
