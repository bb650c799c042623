"""The built-in commands: serve, pull, models, plan, quantize-report, bench, hash-key, new-plugin and plugins."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from sixfold.core.benchmark import command as bench
from sixfold.core.cli import hash_key, new_plugin, quantize_report
from sixfold.core.cli.listing import model_lines, plugin_lines
from sixfold.core.cli.plan import configure_plan, run_plan
from sixfold.core.cli.progress import ProgressReport
from sixfold.core.config import ModelEntry, Settings, absolute_source, default_cache_dir, load_config
from sixfold.core.errors import ConfigError, UsageError
from sixfold.core.hookspecs import Command
from sixfold.core.plugins import Plugins
from sixfold.core.registry import check_entry, resolve_entry
from sixfold.core.telemetry.logs import FORMATS

LOG_LEVELS = ("debug", "info", "warning", "error")


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """``--log-level`` and ``--log-format``, the same for every command that serves."""
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info", help="least severe level that is logged")
    parser.add_argument(
        "--log-format", choices=FORMATS, default="text", help="lines for people, or one JSON object a line"
    )


def builtin_commands(plugins: Plugins) -> tuple[Command, ...]:
    """The commands that need no plugin."""

    def command(
        name: str,
        summary: str,
        configure: Callable[[argparse.ArgumentParser], None],
        run: Callable[[Plugins, argparse.Namespace], int],
    ) -> Command:
        return Command(name=name, summary=summary, configure=configure, run=partial(run, plugins))

    return (
        command("serve", "Serve the models of a configuration file over HTTP.", _configure_serve, _serve),
        command("pull", "Fetch and convert model files, without serving them.", _configure_pull, _pull),
        command("models", "List the models of a configuration file.", _configure_models, _models),
        command(
            "quantize-report",
            "Measure what quantization does to a model: quality, size and speed, by groups of layers.",
            quantize_report.configure,
            quantize_report.run,
        ),
        command(
            "plan", "Say what the models of a configuration file will take of the memory.", configure_plan, run_plan
        ),
        command("bench", "Load one server, or compare two, and say how fast they answer.", bench.configure, bench.run),
        command(
            "hash-key",
            "Make an API key, or read one from standard input, and print its entry for the configuration.",
            hash_key.configure,
            hash_key.run,
        ),
        command(
            "new-plugin",
            "Write a package that is a working plugin, with tests, to put a model into.",
            new_plugin.configure,
            new_plugin.run,
        ),
        command(
            "plugins", "List plugins and what they offer, or why they do not work.", lambda _parser: None, _plugins
        ),
    )


def _configure_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML file with 'models:' and 'server:'")
    parser.add_argument("--host", help="address to listen on (overrides the file)")
    parser.add_argument("--port", type=int, help="port to listen on (overrides the file)")
    add_log_arguments(parser)
    parser.add_argument(
        "--stop-on-eof",
        action="store_true",
        help="stop at once when standard input ends: for a supervisor that keeps a pipe to it, so that none outlives it",
    )


def _serve(plugins: Plugins, args: argparse.Namespace) -> int:
    from sixfold.core.cli.serve import serve  # the HTTP stack takes half a second to import

    config: Path = args.config
    flags: dict[str, JsonValue] = {"host": args.host, "port": args.port}

    def read() -> Settings:
        settings = load_config(config, flags=flags)
        for entry in settings.models.values():
            check_entry(entry, plugins)
        return settings

    owner = sys.stdin if args.stop_on_eof else None
    return serve(config, read, plugins, log_level=args.log_level, log_format=args.log_format, owner=owner)


def _configure_pull(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", metavar="CONFIG_OR_SOURCE", help="a configuration file, or a source such as hf:org/repo"
    )


def _pull(plugins: Plugins, args: argparse.Namespace) -> int:
    what: str = args.what
    scheme, colon, reference = what.partition(":")
    with ProgressReport(sys.stderr) as report:
        if colon and scheme in plugins.sources and not Path(what).exists():
            reference = absolute_source(what, Path.cwd()).partition(":")[2]
            path = plugins.sources[scheme].resolve(reference, cache_dir=default_cache_dir(), progress=report.update)
            found, failures = [f"{what}: {path}"], list[str]()
        else:
            found, failures = _pull_all(load_config(Path(what)), plugins, report)
    if found:
        print("\n".join(found))
    if failures:
        raise ConfigError("\n".join(failures))
    return 0


def _pull_all(settings: Settings, plugins: Plugins, report: ProgressReport) -> tuple[list[str], list[str]]:
    """Pulls every model; one that fails does not keep the others from being pulled."""
    found: list[str] = []
    failures: list[str] = []
    for entry in settings.models.values():
        try:
            model = resolve_entry(entry, plugins, settings.cache_dir, report.update)
        except UsageError as error:
            failures.append(_named(entry, str(error)))
        else:
            python = "" if model.interpreter is None else f", run by {model.interpreter.python}"
            found.append(f"{entry.name}: {model.path} ({model.family.name}{python})")
    return found, failures


def _named(entry: ModelEntry, message: str) -> str:
    return message if message.startswith(f"models.{entry.name}") else f"models.{entry.name}: {message}"


def _configure_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML file with 'models:'")


def _models(plugins: Plugins, args: argparse.Namespace) -> int:
    settings = load_config(args.config)
    print("\n".join(model_lines(settings, plugins)))
    return 0


def _plugins(plugins: Plugins, _args: argparse.Namespace) -> int:
    print("\n".join(plugin_lines(plugins)))
    return 0
