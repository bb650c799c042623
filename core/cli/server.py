"""Puts the parts of a server together: models, HTTP, signals and the watched configuration file."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO, cast

from sixfold.core.config import Settings
from sixfold.core.errors import UsageError
from sixfold.core.family import Family
from sixfold.core.memory.machine import read_machine
from sixfold.core.plugins import Plugins
from sixfold.core.registry import install_command
from sixfold.core.reload import reload_settings
from sixfold.core.runtime.host import ModelHost
from sixfold.core.runtime.report import Report
from sixfold.core.serving.api import ModalityAPI
from sixfold.core.serving.directory import ModelState
from sixfold.core.serving.lifecycle import Lifecycle, Listening, run
from sixfold.core.serving.memory_metrics import MemoryCollector
from sixfold.core.serving.server import SixfoldServer
from sixfold.core.telemetry.opening import open_tracing
from sixfold.core.watcher import content_digest, watch_file

_log = logging.getLogger(__name__)

OnReady = Callable[[str, Mapping[str, Family]], None]


class LiveModels:
    """The models of a running server: brought up beside it, changed with the configuration file, drained at its end.

    A context manager for `sixfold.core.serving.lifecycle.serve`; entering does not wait for models to load.

    Args:
        host: Holds the models.
        settings: What ``read`` returned at first.
        plugins: What is installed.
        config: The configuration file.
        read: Reads and checks the settings again.
        on_ready: Called once when every model has settled and one at least is up.
    """

    def __init__(
        self,
        host: ModelHost,
        settings: Settings,
        plugins: Plugins,
        *,
        config: Path,
        read: Callable[[], Settings],
        on_ready: OnReady,
    ) -> None:
        self._host = host
        self._settings = settings
        self._plugins = plugins
        self._config = config
        self._read = read
        self._on_ready = on_ready
        self._seen = content_digest(config)
        self._stop_watching = asyncio.Event()
        self._listening: Listening | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.error: UsageError | None = None

    def on_listening(self, listening: Listening) -> None:
        """The port takes connections: now the models may load."""
        self._listening = listening
        self._tasks.append(asyncio.create_task(self._bring_up(listening.url, listening.lifecycle)))

    async def _bring_up(self, url: str, lifecycle: Lifecycle) -> None:
        try:
            await self._host.start(self._settings.models)
        except UsageError as error:
            self.error = error
            lifecycle.drain()
            return
        except Exception:  # nobody waits for this task: it must say so itself, and what did start goes on
            _log.exception("not all models could be started")
        slots = [slot for slot in self._host.models() if slot.state in (ModelState.READY, ModelState.UNLOADED)]
        self._on_ready(url, {slot.name: slot.family for slot in slots if slot.family is not None})
        await watch_file(self._config, self._reload_async, self._stop_watching, seen=self._seen)

    def reload(self) -> None:
        """Reads the configuration again and makes it true; a broken one changes nothing and says why."""
        outcome = reload_settings(self._settings, self._read, self._plugins)
        if outcome.error is not None:
            _log.error("the changed configuration is not used, nothing changes: %s", outcome.error)
            return
        if outcome.needs_restart:
            _log.warning("these changes need a restart: %s", ", ".join(outcome.needs_restart))
        self._settings = outcome.settings
        change = outcome.diff
        if not change.empty:
            _log.info(
                "the configuration changed: %d models added, %d removed, %d changed",
                *(len(change.added), len(change.removed), len(change.changed)),
            )
            self._host.apply(change, outcome.settings.models)

    async def _reload_async(self) -> None:
        try:
            self.reload()
        except Exception:  # of a plugin: the next change must be seen all the same
            _log.exception("the changed configuration is not used")

    async def __aenter__(self) -> LiveModels:
        # Before any modality starts up: work that it continues waits for these.
        self._host.announce(self._settings.models)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._stop_watching.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # HTTP has drained: what still runs in the models belongs to clients that are gone.
        await self._host.close(1.0)


def run_server(
    settings: Settings,
    plugins: Plugins,
    *,
    config: Path,
    read: Callable[[], Settings],
    report: Report,
    on_ready: OnReady,
    owner: TextIO | None = None,
) -> int:
    """Serves until a signal ends it; returns the exit status.

    Args:
        settings: What ``read`` returned at first.
        plugins: What is installed.
        config: The configuration file; a change of it, like SIGHUP, leads to `sixfold.core.reload.reload_settings`.
        read: Reads and checks the settings again.
        report: Shows fetching and loading.
        on_ready: Called once, when the server listens and every model is up, with its URL and the served families.
        owner: See `sixfold.core.serving.lifecycle.serve`.

    Raises:
        UsageError: The address is taken, no model could be loaded, or what the settings want is not installed.
    """
    host = ModelHost(
        plugins,
        cache_dir=settings.cache_dir,
        drain_timeout_s=settings.server.drain_timeout_s,
        report=report,
        machine=read_machine(settings.memory_limits_bytes),
    )
    models = LiveModels(host, settings, plugins, config=config, read=read, on_ready=on_ready)
    tracing = open_tracing(settings.telemetry)
    server = SixfoldServer(load_apis(plugins), host, settings.server, ledger=host.ledger, tracing=tracing)
    server.context.metrics.registry.register(MemoryCollector(host))
    try:
        status = run(server, models=models, on_reload=models.reload, on_listening=models.on_listening, owner=owner)
    finally:
        if tracing is not None:
            tracing.close()
    if models.error is not None:
        raise models.error
    return status


def load_apis(plugins: Plugins) -> list[ModalityAPI]:
    """One instance of each plugin's HTTP face; one that can't be imported costs its own routes, not the server."""
    apis: list[ModalityAPI] = []
    for api in plugins.apis.values():
        module_name, _, name = api.factory.partition(":")
        try:
            factory = cast(type[ModalityAPI], getattr(importlib.import_module(module_name), name))
            apis.append(factory())
        except Exception as error:  # a stranger's import may raise anything
            _report_missing_face(error, api.modality, plugins)
    return apis


def _report_missing_face(error: Exception, modality: str, plugins: Plugins) -> None:
    """One line where a library is not installed that a family of the modality says it needs; else an error with its place."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    families = (family for family in plugins.families.values() if family.modality == modality)
    needy = next((family for family in families if missing in family.missing()), None)
    if needy is None:
        origin = plugins.origin[f"api {modality}"]
        _log.error(
            "the HTTP face of %r (plugin %r) does not load: its routes are missing", modality, origin, exc_info=error
        )
    else:
        install = install_command(needy, plugins)
        _log.info("no routes for %r: %s is not installed. To have them: %s", modality, missing, install)
