"""Fields of ``server`` that environment variables and flags set in place of the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import yaml
from pydantic import JsonValue

from sixfold.core.errors import ConfigError
from sixfold.core.yaml_document import Location

SERVER_VARIABLE = "SIXFOLD_SERVER__"
"""Prefix of the variables that set ``server`` fields: ``SIXFOLD_SERVER__PORT=9000``; ``__`` again for nested fields.

One underscore would collide with what Kubernetes injects for a service named ``sixfold``: ``SIXFOLD_PORT=tcp://...``.
"""


def override_from_environment(
    server: dict[str, JsonValue], environ: Mapping[str, str], origins: dict[Location, str]
) -> None:
    """Puts the fields that variables set into ``server``, and what set each into ``origins``.

    Raises:
        ConfigError: A variable holds no valid list or mapping.
    """
    for variable in sorted(name for name in environ if name.startswith(SERVER_VARIABLE)):
        *parents, last = variable.removeprefix(SERVER_VARIABLE).lower().split("__")
        target = server
        for parent in parents:
            inner = target.get(parent)
            target[parent] = child = dict(inner) if isinstance(inner, dict) else {}
            target = child
        target[last] = _variable_value(variable, environ[variable])
        origins["server", *parents, last] = f"environment variable {variable}"


def _variable_value(variable: str, text: str) -> JsonValue:
    # Scalars stay text (pydantic converts them), so that a key such as 1234e5 is never read as a number.
    if not text.startswith(("[", "{")):
        return text
    try:
        return cast(JsonValue, yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"environment variable {variable}: not a valid list or mapping: {error}.") from error


def override_from_flags(
    server: dict[str, JsonValue], flags: Mapping[str, JsonValue], origins: dict[Location, str]
) -> None:
    """The same of flags; a None is no flag."""
    for name, value in flags.items():
        if value is not None:
            server[name] = value
            origins["server", name] = f"--{name.replace('_', '-')}"
