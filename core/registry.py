"""Brings entries of the configuration and plugins together: which family serves an entry, from which files, with which
options; and what a new configuration adds, removes and changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from sixfold.core.config import ModelEntry
from sixfold.core.errors import ConfigError
from sixfold.core.family import Family, ModelFiles
from sixfold.core.hookspecs import Progress, Source
from sixfold.core.plugins import Plugins
from sixfold.core.runtime.environments import resolve_environment
from sixfold.core.runtime.interpreter import Interpreter
from sixfold.core.runtime.quantization.methods import check_declared
from sixfold.core.source_ref import resolve_refs, source_refs
from sixfold.core.validation import did_you_mean, validate


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """An entry with everything that a worker needs to load it.

    Attributes:
        entry: The entry of the configuration.
        family: The family that serves it.
        path: Local, converted files: a folder, or a single file.
        options: The validated instance of the family's options class.
        interpreter: The Python of its workers; None for the server's own.
    """

    entry: ModelEntry
    family: Family
    path: Path
    options: BaseModel
    interpreter: Interpreter | None = None


_TERMS = frozenset({"aliases", "load", "idle_unload_s", "priority"})
"""What a model is called, and when it is in memory: nothing that a worker knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedEntry:
    """An entry that has one name and two versions.

    Attributes:
        fields: Names of the fields that differ.
    """

    old: ModelEntry
    new: ModelEntry
    fields: frozenset[str]

    @property
    def needs_reload(self) -> bool:
        """Whether the model must be loaded anew: not where only its names changed, or when it leaves the memory."""
        return not self.fields <= _TERMS

    @property
    def keeps_process(self) -> bool:
        """Whether a running model may take the change over, if its family can (`Family.adjusts`)."""
        return self.fields <= _TERMS | {"options"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryDiff:
    """What happens to the models between two configurations; entries that stay equal are in none of the three."""

    added: tuple[ModelEntry, ...] = ()
    removed: tuple[ModelEntry, ...] = ()
    changed: tuple[ChangedEntry, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing happens."""
        return not (self.added or self.removed or self.changed)


def diff(old: Mapping[str, ModelEntry], new: Mapping[str, ModelEntry]) -> RegistryDiff:
    """Compares two sets of entries by name; added and changed in the order of ``new``, removed in that of ``old``."""
    changed: list[ChangedEntry] = []
    for name, entry in new.items():
        before = old.get(name, entry)
        fields = frozenset(f for f in type(entry).model_fields if getattr(before, f) != getattr(entry, f))
        if fields:
            changed.append(ChangedEntry(old=before, new=entry, fields=fields))
    return RegistryDiff(
        added=tuple(entry for name, entry in new.items() if name not in old),
        removed=tuple(entry for name, entry in old.items() if name not in new),
        changed=tuple(changed),
    )


def install_command(family: Family, plugins: Plugins) -> str:
    """The pip command that brings what the family needs."""
    extra = f"[{family.extra}]" if family.extra else ""
    return f"pip install '{plugins.distribution_of(f'family {family.name}')}{extra}'"


def check_entry(entry: ModelEntry, plugins: Plugins) -> None:
    """Refuses what can be refused without the model's files, before anything is fetched or unloaded.

    Raises:
        ConfigError: Unknown scheme or family, a missing extra, or options or a quantization that the given family refuses.
    """
    _source(entry.source, plugins, f"models.{entry.name}.source")
    if entry.family is not None:
        family = _named_family(entry, entry.family, plugins)
        if entry.env is None:
            _require_installed(entry, family, plugins)
        _check_quantization(entry, family)
        check_parallel(entry, family)
        for ref in source_refs(_options(entry, family)):
            _source(ref.source, plugins, f"models.{entry.name}.options")


def resolve_entry(entry: ModelEntry, plugins: Plugins, cache_dir: Path, progress: Progress) -> ResolvedModel:
    """Fetches and converts an entry's files and finds its family. Blocks: call it in a thread.

    Files are converted only when no family that may serve the entry can load them as they are.

    Raises:
        ConfigError: The entry does not fit the plugins or its files.
        SourceError: The files cannot be had.
    """
    check_entry(entry, plugins)
    interpreter = None
    if (
        entry.env is not None and entry.family is not None
    ):  # first: what is wrong with it shows before gigabytes are fetched
        interpreter = resolve_environment(entry, plugins.families[entry.family], plugins, cache_dir, progress)

    def fetch(text: str, what: str) -> Path:
        source, reference = _source(text, plugins, f"models.{entry.name}.{what}")
        return source.resolve(reference, cache_dir=cache_dir, progress=progress)

    path = fetch(entry.source, "source")
    candidates = (plugins.families[entry.family],) if entry.family else tuple(plugins.families.values())
    if not any(family.detect(ModelFiles(path)) > 0 for family in candidates):
        converted: Path | None = plugins.hook.convert_model(
            files=ModelFiles(path), cache_dir=cache_dir, progress=progress
        )
        path = converted or path
    family = plugins.families[entry.family] if entry.family else _detected_family(entry, path, plugins)
    _check_quantization(entry, family)
    check_parallel(entry, family)
    options = resolve_refs(_options(entry, family), lambda ref: fetch(ref.source, "options"))
    return ResolvedModel(entry=entry, family=family, path=path, options=options, interpreter=interpreter)


def _check_quantization(entry: ModelEntry, family: Family) -> None:
    if entry.quantization is not None:
        place = f"models.{entry.name}.quantization"
        check_declared(entry.quantization, family.quantization, family=family.name, place=place)


def check_parallel(entry: ModelEntry, family: Family) -> None:
    """Refuses ranks of a family that has none.

    Raises:
        ConfigError: It has none.
    """
    if entry.parallel is not None and family.parallel is None:
        raise ConfigError(
            f"models.{entry.name}.parallel: the family {family.name} computes its steps in one process. Remove 'parallel', "
            "or use 'replicas' for more throughput."
        )
    if entry.parallel is not None and entry.env is not None:
        raise ConfigError(f"models.{entry.name}.parallel: ranks run in the server's own Python. Remove 'env'.")


def declared_variants(entry: ModelEntry, plugins: Plugins) -> tuple[str, ...]:
    """The names that an entry's options offer beside its own, as far as can be told before its files are there."""
    family = plugins.families.get(entry.family or "")
    if family is None:
        return ()
    try:
        return family.variants(_options(entry, family))
    except ConfigError:  # `check_entry` says so to whoever loads it
        return ()


def _source(text: str, plugins: Plugins, place: str) -> tuple[Source, str]:
    scheme, _, reference = text.partition(":")
    if scheme not in plugins.sources:
        raise ConfigError(f"{place}: no plugin offers the scheme {scheme!r}. {did_you_mean(scheme, plugins.sources)}")
    return plugins.sources[scheme], reference


def _named_family(entry: ModelEntry, name: str, plugins: Plugins) -> Family:
    if name not in plugins.families:
        raise ConfigError(
            f"models.{entry.name}.family: no plugin offers the family {name!r}. "
            f"{did_you_mean(name, plugins.families)} `sixfold plugins` shows what is loaded."
        )
    return plugins.families[name]


def _require_installed(entry: ModelEntry, family: Family, plugins: Plugins) -> None:
    missing = family.missing()
    if missing:
        raise ConfigError(
            f"models.{entry.name}: the family {family.name!r} needs {', '.join(missing)}, which is not installed. "
            f"Run: {install_command(family, plugins)}"
        )


def _detected_family(entry: ModelEntry, path: Path, plugins: Plugins) -> Family:
    """The surest family decides the modality; within it, the surest family whose requirements are installed serves.

    So a missing engine falls back to its modality's other family, and never to one that would serve something else.
    """
    files = ModelFiles(path)
    scores = {family.name: family.detect(files) for family in plugins.families.values()}
    sure = sorted((name for name, score in scores.items() if score > 0), key=lambda name: (-scores[name], name))
    if not sure:
        broken = [record.name for record in plugins.records if record.error is not None]
        hint = f" The plugins {', '.join(broken)} are not loaded: `sixfold plugins` says why." if broken else ""
        raise ConfigError(
            f"models.{entry.name}: no family recognises the files in {path}. Set 'family:' to one of: "
            f"{', '.join(sorted(plugins.families)) or 'none is installed'}.{hint}"
        )
    modality = plugins.families[sure[0]].modality
    same = [plugins.families[name] for name in sure if plugins.families[name].modality == modality]
    installed = [family for family in same if not family.missing()]
    if not installed:
        _require_installed(entry, same[0], plugins)
    best = installed[0]
    ties = [name for name in sure if scores[name] == scores[best.name] and not plugins.families[name].missing()]
    if len(ties) > 1:
        raise ConfigError(
            f"models.{entry.name}: the families {' and '.join(ties)} fit the files equally well. "
            "Set 'family:' to one of them."
        )
    return best


def _options(entry: ModelEntry, family: Family) -> BaseModel:
    return validate(family.options, entry.options, prefix=("models", entry.name, "options"))
