"""``sixfold serve``: hands a checked configuration to the server and prints calls to try when it is up."""

from __future__ import annotations

import logging
import string
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from sixfold.core.cli.progress import ProgressReport
from sixfold.core.cli.server import run_server
from sixfold.core.config import Settings
from sixfold.core.family import Family
from sixfold.core.plugins import Plugins
from sixfold.core.telemetry.logs import LogFormat, configure_logging

_log = logging.getLogger(__name__)


def serve(
    config: Path,
    read: Callable[[], Settings],
    plugins: Plugins,
    *,
    log_level: str,
    log_format: LogFormat = "text",
    owner: TextIO | None = None,
) -> int:
    """Runs the server until it is stopped.

    Args:
        config: The file that is watched for changes.
        read: Reads and checks the settings: now, and again after each change.
        plugins: What is installed.
        log_level: One of `sixfold.core.cli.commands.LOG_LEVELS`.
        log_format: With ``json`` progress is logged, too, so that every line of standard error is an object.
        owner: A pipe that its owner never writes to; its end stops the server at once.

    Raises:
        UsageError: The settings are wrong, or a model can't be had.
    """
    settings = read()
    configure_logging(log_level, log_format)
    say = _log.info if log_format == "json" else None
    with ProgressReport(sys.stderr, say=say) as report:

        def on_ready(url: str, served: Mapping[str, Family]) -> None:
            report.stop_bars()
            message = start_message(plugins, served, url, has_page=settings.server.playground)
            print(message, flush=True)

        return run_server(settings, plugins, config=config, read=read, report=report, on_ready=on_ready, owner=owner)


def start_message(plugins: Plugins, served: Mapping[str, Family], url: str, *, has_page: bool = False) -> str:
    """What ``serve`` prints when it is up: the address, the models, and calls to paste.

    Args:
        plugins: Their APIs bring the examples.
        served: The family of each served model, by the model's name.
        url: The server's address without a trailing slash.
        has_page: Whether browsers find the playground there.
    """
    lines = [f"Sixfold serves {', '.join(served) or 'no model yet'} on {url}"]
    if has_page:
        lines.append("Open it in a browser to try them and to watch their batches.")
    for modality, api in plugins.apis.items():
        models: dict[str, str] = {}
        for name, family in served.items():
            if family.modality == modality:
                operation = next((each for each in api.examples if each in family.operations), "")
                models.setdefault(operation, name)
        lines += [
            "\n" + string.Template(example).safe_substitute(url=url, model=models[operation]).strip()
            for operation, example in api.examples.items()
            if operation in models
        ]
    return "\n".join(lines) + "\n"
