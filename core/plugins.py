"""Loads plugins by entry point and collects what they offer; nothing here knows which plugins exist."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from sixfold.core import hookspecs
from sixfold.core.benchmark.workload import Workload
from sixfold.core.errors import PluginConflict
from sixfold.core.family import Family
from sixfold.core.hookspecs import PROJECT, Api, Command, Source
from sixfold.core.plugin_hints import hook_error, hook_hint

OfferT = TypeVar("OfferT")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRecord:
    """One plugin, loaded or not.

    Attributes:
        name: The entry point's name.
        module: Its target.
        distribution: Name and version of the package that brings it; None for one that the program gave by hand.
        error: Why it could not be loaded, or None.
        hint: What is most likely wrong with one that was loaded, or None.
    """

    name: str
    module: str
    distribution: str | None = None
    error: str | None = None
    hint: str | None = None


class Plugins:
    """The loaded plugins and what they registered.

    A plugin whose registration fails is taken out again with everything that it offered, and its record says why.

    Args:
        manager: A pluggy manager with Sixfold's specs, to which all plugins were added.
        records: What was found, for ``sixfold plugins``.

    Raises:
        PluginConflict: Two plugins offer one name.
        pluggy.PluginValidationError: A plugin implements a hook that does not exist.
    """

    def __init__(self, manager: pluggy.PluginManager, records: tuple[PluginRecord, ...] = ()) -> None:
        manager.check_pending()
        self.hook = manager.hook
        self.families: dict[str, Family] = {}
        self.apis: dict[str, Api] = {}
        self.sources: dict[str, Source] = {}
        self.commands: dict[str, Command] = {}
        self.workloads: dict[str, Workload] = {}
        self.origin: dict[str, str] = {}
        failures: dict[str, str] = {}
        for plugin_name, plugin in manager.list_name_plugin():
            try:
                self._collect(manager, plugin_name, plugin)
            except PluginConflict:
                raise
            except Exception as failure:  # a stranger's hook may raise anything; it costs its own offers only
                failures[plugin_name] = f"{type(failure).__name__}: {failure}"
                self._forget(plugin_name)
                manager.unregister(plugin)
        self.records = tuple(
            dataclasses.replace(record, error=failures.get(record.name, record.error)) for record in records
        )

    def distribution_of(self, offer: str) -> str:
        """Name of the package that brings an offer, such as ``"family a/b"``, for pip commands in messages."""
        plugin = self.origin[offer]
        found = (record.distribution for record in self.records if record.name == plugin and record.distribution)
        return next(found, PROJECT).partition(" ")[0]

    def _collect(self, manager: pluggy.PluginManager, plugin_name: str, plugin: object) -> None:
        # One plugin at a time, so that a conflict can name both sides.
        others = [p for p in manager.get_plugins() if p is not plugin]

        def offers(
            hook: str, kind: str, expected: type, table: dict[str, OfferT], key: Callable[[OfferT], str]
        ) -> None:
            def register(item: OfferT) -> None:
                if not isinstance(item, expected):
                    raise TypeError(f"{hook} must register a {expected.__name__}, not a {type(item).__name__}")
                name = key(item)
                if name in table:
                    first = self.origin[f"{kind} {name}"]
                    raise PluginConflict(
                        f"The plugins {first!r} and {plugin_name!r} both register the {kind} {name!r}. Uninstall one."
                    )
                table[name] = item
                self.origin[f"{kind} {name}"] = plugin_name

            manager.subset_hook_caller(hook, remove_plugins=others)(register=register)

        offers("register_families", "family", Family, self.families, lambda family: family.name)
        offers("register_apis", "api", Api, self.apis, lambda api: api.modality)
        offers("register_sources", "source", object, self.sources, lambda source: source.scheme)
        offers("register_commands", "command", Command, self.commands, lambda command: command.name)
        offers("register_workloads", "workload", Workload, self.workloads, lambda workload: workload.name)

    def _forget(self, plugin_name: str) -> None:
        tables: dict[str, dict[str, Any]] = {
            "family": self.families,
            "api": self.apis,
            "source": self.sources,
            "command": self.commands,
            "workload": self.workloads,
        }
        for offer in [offer for offer, owner in self.origin.items() if owner == plugin_name]:
            kind, _, name = offer.partition(" ")
            del tables[kind][name], self.origin[offer]


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager with Sixfold's specs and no plugin; for tests and programs that choose their plugins by hand."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def load_plugins(extra: Mapping[str, ModuleType] | None = None) -> Plugins:
    """Loads every plugin of the entry-point group ``sixfold``.

    A plugin whose module can't be imported, that implements a hook which does not exist, or whose registration fails is
    recorded with its reason and left out: it costs its own models, not the server.

    Args:
        extra: Further plugin modules by name, for programs that embed Sixfold.

    Raises:
        PluginConflict: Two plugins have one name, or register one name.
    """
    manager = new_manager()
    records: list[PluginRecord] = []
    entry_points = sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda point: point.name)
    for point in entry_points:
        record = PluginRecord(
            name=point.name,
            module=point.value,
            distribution=f"{point.dist.name} {point.dist.version}" if point.dist else None,
        )
        _refuse_duplicate(record, records)
        try:
            plugin: object = point.load()
        except Exception as failure:  # a stranger's import may raise anything; it must not take the server down
            record = dataclasses.replace(record, error=f"{type(failure).__name__}: {failure}")
        else:
            record = _registered(manager, plugin, record)
        records.append(record)
    for name, module in (extra or {}).items():
        record = PluginRecord(name=name, module=module.__name__)
        _refuse_duplicate(record, records)
        records.append(_registered(manager, module, record))
    return Plugins(manager, tuple(records))


def _registered(manager: pluggy.PluginManager, plugin: object, record: PluginRecord) -> PluginRecord:
    error = hook_error(manager, plugin)
    if error is not None:
        return dataclasses.replace(record, error=error)
    try:
        manager.register(plugin, name=record.name)
    except (pluggy.PluginValidationError, ValueError) as failure:
        manager.unregister(name=record.name)
        return dataclasses.replace(record, error=" ".join(str(failure).split()))
    return dataclasses.replace(record, hint=hook_hint(manager, plugin))


def _refuse_duplicate(record: PluginRecord, records: list[PluginRecord]) -> None:
    for other in records:
        if other.name == record.name:
            raise PluginConflict(
                f"Two plugins are named {record.name!r}: {other.module} ({other.distribution or 'given by the program'}) "
                f"and {record.module} ({record.distribution or 'given by the program'}). Uninstall one."
            )
