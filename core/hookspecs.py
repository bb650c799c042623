"""Every hook of Sixfold. A plugin is a module named by an entry point of the group ``sixfold``; it implements any of these
with ``@sixfold.core.hookspecs.hookimpl``, or it is a `Plugin`, which does so. First-party plugins come in the same way.

A plugin's module must import nothing heavy: it is loaded in every process, also where its extra is not installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import pluggy

from sixfold.core.benchmark.workload import Workload
from sixfold.core.family import Family, ModelFiles
from sixfold.core.probe import Probe

PROJECT = "sixfold"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

OfferT = TypeVar("OfferT")

Progress = Callable[[str, int, int | None], None]
"""Called with (what, bytes done, bytes in all or None) while files are fetched or converted."""


class Source(Protocol):
    """Finds a model's files by a reference such as ``hf:org/repo@revision``."""

    @property
    def scheme(self) -> str:
        """The part before the colon, e.g. ``"hf"``."""
        ...

    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        """Returns the local folder (or single file) of the model; fetches what is not there yet.

        Called in the serving process or by ``sixfold pull``, in a thread. Interrupted downloads resume; a second call
        with complete files needs no network.

        Args:
            reference: What follows ``scheme:``.
            cache_dir: Where fetched files are kept; shared by all sources.
            progress: See :data:`Progress`.

        Raises:
            SourceError: With what to do next.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The HTTP face of a modality.

    Attributes:
        modality: E.g. ``"llm"``; unique over all plugins.
        factory: ``"package.module:Class"``, a `sixfold.core.serving.api.ModalityAPI`; imported in the serving process.
        examples: Ready-to-paste calls by the operation that they ask for: ``sixfold serve`` prints for each model the
            first that its family answers, and none twice; ``$url`` stands for the server's address, ``$model`` for the
            model's name.
        probes: What the conformance kit asks of the modality's families, also of those of other plugins.
        operations: What its routes ask models for beside the operations of its examples and probes. A family's operation
            that no Api names is taken for a misspelling.
    """

    modality: str
    factory: str
    examples: Mapping[str, str] = field(default_factory=dict[str, str])
    probes: tuple[Probe, ...] = ()
    operations: frozenset[str] = frozenset()

    @property
    def all_operations(self) -> frozenset[str]:
        """All that its routes ask models for."""
        return self.operations | frozenset(self.examples) | {probe.operation for probe in self.probes}

    def __post_init__(self) -> None:
        """Refuses examples of another form, which would end the server when it has started."""
        if not isinstance(self.examples, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # plugins may be untyped
            raise TypeError(
                f"examples of the Api of {self.modality!r} must be a mapping from an operation to a call, such as"
                f" {{'embed': 'curl $url/v1/embeddings ...'}}, not a {type(self.examples).__name__}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A subcommand of ``sixfold``.

    Attributes:
        name: What follows ``sixfold``; unique over all plugins and the built-in commands.
        summary: One sentence for ``sixfold --help``.
        configure: Adds the command's arguments to its own parser.
        run: Does the work and returns the exit status. A UsageError becomes one message and status 2.
    """

    name: str
    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


class Plugin:
    """A plugin that is data: an entry point may name one (``package.plugin:PLUGIN``) in place of a module with hooks.

    Args:
        families: For `register_families`.
        apis: For `register_apis`.
        sources: For `register_sources`.
        commands: For `register_commands`.
        workloads: For `register_workloads`.
    """

    def __init__(
        self,
        *,
        families: Sequence[Family] = (),
        apis: Sequence[Api] = (),
        sources: Sequence[Source] = (),
        commands: Sequence[Command] = (),
        workloads: Sequence[Workload] = (),
    ) -> None:
        self._families = tuple(families)
        self._apis = tuple(apis)
        self._sources = tuple(sources)
        self._commands = tuple(commands)
        self._workloads = tuple(workloads)

    @hookimpl
    def register_families(self, register: Callable[[Family], None]) -> None:
        """Offers the families."""
        _each(self._families, register)

    @hookimpl
    def register_apis(self, register: Callable[[Api], None]) -> None:
        """Offers the HTTP faces."""
        _each(self._apis, register)

    @hookimpl
    def register_sources(self, register: Callable[[Source], None]) -> None:
        """Offers the sources."""
        _each(self._sources, register)

    @hookimpl
    def register_commands(self, register: Callable[[Command], None]) -> None:
        """Offers the commands."""
        _each(self._commands, register)

    @hookimpl
    def register_workloads(self, register: Callable[[Workload], None]) -> None:
        """Offers the workloads."""
        _each(self._workloads, register)


def _each(offers: Sequence[OfferT], register: Callable[[OfferT], None]) -> None:
    for offer in offers:
        register(offer)


@hookspec
def register_families(register: Callable[[Family], None]) -> None:
    """Offers model families. Called once in every process, before any model loads.

    Call ``register(family)`` per family. Two plugins that claim one name raise PluginConflict.
    """


@hookspec
def register_apis(register: Callable[[Api], None]) -> None:
    """Offers HTTP faces, one LitAPI a modality. Called once in the serving process, before it listens.

    Call ``register(api)``. Two plugins that claim one modality raise PluginConflict; so do two routes with one path.
    """


@hookspec
def register_sources(register: Callable[[Source], None]) -> None:
    """Offers model sources. Called once in the serving process and by ``sixfold pull``.

    Call ``register(source)``. Two plugins that claim one scheme raise PluginConflict.
    """


@hookspec
def register_commands(register: Callable[[Command], None]) -> None:
    """Offers subcommands of ``sixfold``. Called once by the command line, before arguments are parsed.

    Call ``register(command)``. Two plugins that claim one name, or a built-in command's, raise PluginConflict.
    """


@hookspec
def register_workloads(register: Callable[[Workload], None]) -> None:
    """Offers kinds of requests that ``sixfold bench`` can send. Called once by the command line, before arguments are parsed.

    Call ``register(workload)``. Two plugins that claim one name raise PluginConflict.
    """


@hookspec(firstresult=True)
def convert_model(files: ModelFiles, cache_dir: Path, progress: Progress) -> Path | None:
    """Converts files that no family can load directly (GGUF) into a folder that one can; None if there is nothing to do.

    Called after a source resolved, in the serving process or by ``sixfold pull``, in a thread. The result must be kept in
    ``cache_dir`` under a name made from the content, so that a second call is instant. The first plugin to answer wins.
    """
