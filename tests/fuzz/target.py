"""What is fuzzed: one reader of foreign bytes, what it may refuse them with, and where to begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

from sixfold.core.errors import RequestError

ValueT = TypeVar("ValueT")

_FIRST_SERVER_ERROR = 500


class Finding(Exception):
    """An input that a reader must refuse, or take, in another way than it does."""


TALKERS = ("python_multipart", "uvicorn.error", "libav", "PIL", "sixfold")
"""Loggers that write a line about each broken input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A reader of foreign bytes.

    Attributes:
        name: ``group.what``, unique.
        read: Reads one input; checks by itself what must hold of the result.
        refuses: What it may raise. Of a RequestError the status must be below 500.
        seeds: Good inputs, and bad ones that come far.
        words: For the fuzzer's dictionary.
        broke: Inputs that broke it once. They are read in every run.
        max_bytes: Of one input.
        budget_s: What reading one input may take on a busy machine.
    """

    name: str
    read: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...] = (RequestError,)
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    broke: tuple[bytes, ...] = ()
    max_bytes: int = 4096
    budget_s: float = 5.0

    def attempt(self, data: bytes) -> bool:
        """Reads one input; says whether it was taken.

        Raises:
            Finding: It was refused with a server error.
            Exception: Whatever the reader should not have let through.
        """
        try:
            self.read(data)
        except self.refuses as error:
            if isinstance(error, RequestError) and error.status >= _FIRST_SERVER_ERROR:
                raise Finding(f"refused with {error.status}: {error}") from error
            return False
        return True


@cache
def loop() -> asyncio.AbstractEventLoop:
    """One event loop for all readers that want one: making one for each input would be most of the work."""
    return asyncio.new_event_loop()


def run(work: Coroutine[Any, Any, ValueT]) -> ValueT:
    """The result of a coroutine."""
    return loop().run_until_complete(work)


@cache
def scratch() -> Path:
    """A folder for readers that want files; of this process, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    return Path(mkdtemp(prefix="sixfold-fuzz-", dir=memory if memory.is_dir() else None))


def as_file(data: bytes, name: str = "input") -> Path:
    """The input as a file; the same one each time."""
    path = scratch() / name
    path.write_bytes(data)
    return path


def text_of(data: bytes) -> str:
    """The input for readers of text that was decoded before: what is no UTF-8 stands for itself."""
    return data.decode("utf-8", "replace")


def check(holds: bool, what: str) -> None:
    """Says what must hold of a result.

    Raises:
        Finding: It does not.
    """
    if not holds:
        raise Finding(what)
