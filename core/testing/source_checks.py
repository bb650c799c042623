"""Checks of a model source: that it finds files, keeps them, and says what is wrong with a reference."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from sixfold.core.errors import SourceError
from sixfold.core.hookspecs import Source
from sixfold.core.testing.failure import fail, require

_NONSENSE = ("", "no such thing", "://", "../../x#y=z")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceUnderTest:
    """A source, and a reference of the configuration that it must find.

    Attributes:
        source: What the plugin registered.
        reference: What follows the scheme.
        cache_dir: Empty at first.
    """

    source: Source
    reference: str
    cache_dir: Path


def finds_its_files(subject: SourceUnderTest) -> None:
    """The reference becomes a file or folder; progress is told; nothing half done is left beside it."""
    told: list[str] = []

    def progress(what: str, done_bytes: int, total_bytes: int | None) -> None:
        require(
            total_bytes is None or done_bytes <= total_bytes, f"progress of {what}: {done_bytes} of {total_bytes} bytes"
        )
        told.append(what)

    path: Any = subject.source.resolve(subject.reference, cache_dir=subject.cache_dir, progress=progress)
    require(isinstance(path, Path), f"{_named(subject)} gave a {type(path).__name__}, not a Path.")
    require(path.exists(), f"{_named(subject)} gave {path}, which does not exist.")
    require(path.is_file() or any(path.iterdir()), f"{_named(subject)} gave the folder {path}, which is empty.")
    left = [str(file) for file in subject.cache_dir.rglob("*.part")]
    require(not left, f"{_named(subject)} left {left}.")


def needs_no_network_the_second_time(subject: SourceUnderTest) -> None:
    """Complete files are found again without a connection, under the same path."""
    first = subject.source.resolve(subject.reference, cache_dir=subject.cache_dir, progress=_quiet)
    before = _times(first)
    with _without_network():
        try:
            second = subject.source.resolve(subject.reference, cache_dir=subject.cache_dir, progress=_quiet)
        except _Connected:
            fail(f"{_named(subject)} connects to the network although its files are there.")
    require(second == first, f"{_named(subject)} gave {first} first, then {second}.")
    require(_times(second) == before, f"{_named(subject)} wrote files anew that were there.")


def refuses_nonsense(subject: SourceUnderTest) -> None:
    """A reference that can't be read is a SourceError with words, not a defect."""
    for reference in _NONSENSE:
        with _without_network():
            try:
                subject.source.resolve(reference, cache_dir=subject.cache_dir / "nonsense", progress=_quiet)
            except SourceError as error:
                require(str(error), f"{subject.source.scheme}:{reference} is refused without a word.")
            except _Connected:
                fail(
                    f"{subject.source.scheme}:{reference} is looked up in the network. It is no reference: let a pattern refuse "
                    "it with a SourceError, before anything is connected."
                )
            except Exception as error:
                fail(
                    f"{subject.source.scheme}:{reference} raises {type(error).__name__}: {error}. Raise a SourceError."
                )
            else:
                fail(f"{subject.source.scheme}:{reference} is taken for a model. Raise a SourceError.")


SOURCE_CHECKS = (finds_its_files, needs_no_network_the_second_time, refuses_nonsense)


def _named(subject: SourceUnderTest) -> str:
    return f"{subject.source.scheme}:{subject.reference}"


def _quiet(_what: str, _done_bytes: int, _total_bytes: int | None) -> None:
    return


def _times(path: Path) -> dict[str, int]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file): file.stat().st_mtime_ns for file in files}


class _Connected(BaseException):
    """No Exception, so that no source takes it for a network that is down."""


@contextmanager
def _without_network() -> Generator[None]:
    def refuse(*_args: object) -> None:
        raise _Connected

    with mock.patch.object(socket.socket, "connect", refuse), mock.patch.object(socket, "getaddrinfo", refuse):
        yield
