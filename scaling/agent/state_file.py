"""One value in one file, whole or not at all: what a site's agent or a gateway goes on with when it starts and hears nobody."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from sixfold.core.errors import ConfigError

StateT = TypeVar("StateT", bound=msgspec.Struct)


class StateFile(Generic[StateT]):
    """A file that a power cut leaves as it was or as it should be.

    Args:
        path: Its name; the folder is made when missing.
        empty: What is loaded where there is no file; its type is the file's.
    """

    def __init__(self, path: Path, empty: StateT) -> None:
        self._path = path
        self._empty = empty

    def load(self) -> StateT:
        """What was saved last; the empty value where there is no file.

        Raises:
            ConfigError: The file is not one of ours. To start without a plan would stop what runs, or forget which regions
                are locked, so nobody guesses.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=type(self._empty))
        except FileNotFoundError:
            return self._empty
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"state: {self._path} does not hold the last plan: {error}. Restore it, or remove it to wait for the hub's."
            ) from error

    def save(self, state: StateT) -> None:
        """Writes beside the file, then replaces it.

        Raises:
            OSError: The disk is full or read-only; the file is as before.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f".{self._path.name}.new")
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(state))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
