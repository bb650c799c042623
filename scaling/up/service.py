"""Puts ``sixfold up`` together: one process that is the gateway and the agent, before a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pydantic import JsonValue

from sixfold.core.errors import ConfigError, UsageError
from sixfold.core.plugins import Plugins, load_plugins
from sixfold.core.registry import check_entry
from sixfold.core.serving.lifecycle import run
from sixfold.core.telemetry.logs import LogFormat, configure_logging
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.registry_settings import RegistryPlace, open_place
from sixfold.scaling.up.settings import Site, load_site
from sixfold.scaling.up.site import RunningSite

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def run_up(
    config: Path,
    *,
    flags: Mapping[str, JsonValue],
    address: str | None,
    keep: bool,
    log_level: str,
    log_format: LogFormat = "text",
) -> int:
    """See `sixfold.scaling.up.command.run`."""
    plugins = load_plugins()

    def read() -> Site:
        site = load_site(config, flags=flags)
        check_site(site, plugins)
        return site

    site = read()
    configure_logging(log_level, log_format)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each call, and the agent's are a few a second
    with ExitStack() as stack:
        registry = site.cluster.registry
        if registry is None:
            if keep:
                raise UsageError(
                    "--keep: set cluster.registry, or the kept replicas publish themselves where nobody looks."
                )
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sixfold-up-"))
            registry = RegistryPlace(path=Path(folder) / "replicas.db")
        replica_key = (site.cluster.replica_key or key_of(registry)) if site.settings.server.api_keys else None
        table = open_place(registry, ttl_s=site.cluster.lease_s)
        gateway = Gateway(site.gateway(registry, replica_key=replica_key), registry=table, divides=True)

        def on_ready(url: str, models: Sequence[str]) -> None:
            print(f"Sixfold serves {', '.join(models)} on {url}", flush=True)

        running = RunningSite(
            *(site, gateway),
            config=config,
            read=read,
            registry=registry,
            table=table,
            replica_key=replica_key,
            address=address,
            keep=keep,
            on_ready=on_ready,
        )
        status = run(gateway, models=running, on_listening=running.on_listening, on_reload=running.reload)
    if running.error is not None:
        raise running.error
    return status


def check_site(site: Site, plugins: Plugins) -> None:
    """Refuses what can be refused of models without their files; of roles, with the words of whoever wrote them.

    Raises:
        ConfigError: With what to do.
    """
    for entry in site.settings.models.values():
        check_entry(entry, plugins)
    for service, which in site.services.items():
        try:
            check_entry(site.entry(service), plugins)
        except ConfigError as error:  # the model alone was right
            raise ConfigError(
                f"cluster.services.{which.model}.roles: servers of the service {service!r} can not do as roles say: {error} "
                "Remove roles where the model exchanges no prompts, or correct the options of the role."
            ) from error


def key_of(registry: RegistryPlace) -> str:
    """The key that replicas of a registry demand: made once, and kept beside its file for other gateways and the next start.

    Raises:
        ConfigError: The file can't be read or made.
    """
    if registry.path is None:
        raise ConfigError(
            "cluster.registry: with etcd and server.api_keys set cluster.replica_key, which all machines share: a key made at "
            "each start would lock out the replicas that run."
        )
    path = Path(f"{registry.path}.key")
    try:
        with contextlib.suppress(FileExistsError), os.fdopen(os.open(path, _NEW, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
        return path.read_text()
    except OSError as error:
        raise ConfigError(
            f"cluster.registry: {path} can't be had: {error}. Name a file in a folder that exists."
        ) from error
