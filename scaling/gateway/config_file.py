"""From the gateway's configuration file to its settings: one file, read once, checked whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from sixfold.core.errors import ConfigError
from sixfold.core.validation import validate
from sixfold.core.yaml_document import Location, read_document
from sixfold.scaling.gateway.settings import GatewaySettings


def load_gateway_config(
    path: Path, *, environ: Mapping[str, str] | None = None, flags: Mapping[str, JsonValue] | None = None
) -> GatewaySettings:
    """Reads the gateway's configuration file.

    Args:
        path: The YAML file; ``${NAME}`` is filled in from the environment.
        environ: Environment variables; those of the process unless given.
        flags: Fields of ``server`` from the command line; a None is no flag.

    Raises:
        ConfigError: With file, line, dotted path and what to do; all problems at once where possible.
    """
    document = read_document(path, os.environ if environ is None else environ)
    data: dict[str, JsonValue] = dict(document.root)
    if "models" in data:
        raise ConfigError(
            f"{document.where(('models',))}: a gateway has no 'models': its replicas tell it theirs. Start the models with "
            "'sixfold serve', and list the addresses of those servers under 'replicas'."
        )
    server = data.get("server")
    if server is None or isinstance(server, dict):
        given = {name: value for name, value in (flags or {}).items() if value is not None}
        data["server"] = {"port": 8080, **(server or {}), **given}
    telemetry = data.get("telemetry")
    if isinstance(telemetry, dict):
        data["telemetry"] = {"service_name": "sixfold-gateway", **telemetry}
    registry = data.get("registry")
    if isinstance(registry, dict) and isinstance(registry.get("path"), str):
        data["registry"] = {**registry, "path": str((path.resolve().parent / str(registry["path"])).resolve())}

    def where(location: Location) -> str:
        return document.where(location)

    return validate(GatewaySettings, data, where=where)
