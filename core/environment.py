"""What a person writes about the Python of one model's worker, so that engines whose pins conflict live under one server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EnvironmentEntry(BaseModel):
    """The Python of a model's workers: an interpreter that is there, or an environment that is built once.

    This very installation of Sixfold is imported there, whatever else is installed in it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    python: Path | None = None
    """An interpreter of Python 3.11 or newer that has what the family needs; relative to the configuration's folder."""

    extra: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$")] | None = None
    """Builds an environment with this extra of the package that brings the family, such as ``vllm``."""

    requirements: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Builds an environment with these lines of a pip requirements file; with ``extra``, in addition to it."""

    @model_validator(mode="after")
    def _one_way(self) -> EnvironmentEntry:
        builds = self.extra is not None or bool(self.requirements)
        if builds == (self.python is not None):
            raise ValueError("needs either 'python', or 'extra' and 'requirements' (one of them or both)")
        if any("\n" in line for line in self.requirements):
            raise ValueError("'requirements' is a list of lines; one of them holds a line break")
        return self
