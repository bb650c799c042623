"""``sixfold gateway``: from a configuration file to a gateway that listens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from sixfold.core.errors import ConfigError
from sixfold.core.serving.lifecycle import Listening, run
from sixfold.core.telemetry.logs import LogFormat, configure_logging
from sixfold.core.telemetry.opening import open_tracing
from sixfold.scaling.etcd_registry import open_registry
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.gateway.config_file import load_gateway_config
from sixfold.scaling.gateway.prompt_tokens import load_token_ids
from sixfold.scaling.gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from sixfold.core.telemetry.tracing import Tracing


def run_gateway(config: Path, *, flags: Mapping[str, JsonValue], log_level: str, log_format: LogFormat = "text") -> int:
    """Runs the gateway until it is stopped; returns the exit status.

    Raises:
        UsageError: The settings are wrong, or the address can't be listened on.
    """
    settings = load_gateway_config(config, flags=flags)
    configure_logging(log_level, log_format)
    tracing = open_tracing(settings.telemetry)
    try:
        return run(
            build_gateway(settings, tracing=tracing),
            on_listening=lambda listening: print(_greeting(listening, settings), flush=True),
        )
    finally:
        if tracing is not None:
            tracing.close()


def build_gateway(settings: GatewaySettings, *, tracing: Tracing | None = None) -> Gateway:
    """The gateway of some settings, with the registry and the tokenizers that they name.

    Raises:
        ConfigError: The registry can't be opened, or a tokenizer can't be loaded.
    """
    registry = None if settings.registry is None else open_registry(settings.registry.address)
    routing = settings.routing
    if routing.tokenizers and routing.policy != "kv":
        raise ConfigError("routing.tokenizers is only used with 'policy: kv'. Set that, or remove it.")
    token_ids = load_token_ids(routing.tokenizers) if routing.tokenizers else None
    return Gateway(settings, registry=registry, token_ids=token_ids, tracing=tracing)


def _greeting(listening: Listening, settings: GatewaySettings) -> str:
    named = f"{len(settings.replicas)} servers" if settings.replicas else "the servers of the registry"
    return f"The gateway to {named} ({settings.routing.policy}) is on {listening.url}"
