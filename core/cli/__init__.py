"""The ``sixfold`` command: finds the subcommand, and turns the operator's mistakes into one message and status 2."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from sixfold.core.cli.commands import builtin_commands
from sixfold.core.errors import PluginConflict, UsageError
from sixfold.core.hookspecs import PROJECT, Command
from sixfold.core.plugins import Plugins, load_plugins

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one ``sixfold`` command.

    Args:
        arguments: What follows the program's name; the process's own unless given.

    Returns:
        The exit status: 0, 2 after a usage error, 130 after Ctrl-C, or what the command says.
    """
    try:
        plugins = load_plugins()
        args = build_parser(all_commands(plugins)).parse_args(arguments)
        status: int = args.command.run(args)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"{PROJECT}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"\n{PROJECT}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; the interpreter must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def all_commands(plugins: Plugins) -> dict[str, Command]:
    """The built-in commands and those of plugins, by name.

    Raises:
        PluginConflict: A plugin claims a built-in command's name.
    """
    commands = {command.name: command for command in builtin_commands(plugins)}
    for name, command in plugins.commands.items():
        if name in commands:
            owner = plugins.origin[f"command {name}"]
            raise PluginConflict(f"The plugin {owner!r} registers the built-in command {name!r}. Uninstall it.")
        commands[name] = command
    return commands


def build_parser(commands: dict[str, Command]) -> argparse.ArgumentParser:
    """The parser of the whole command line; ``command`` in its result is the chosen Command."""
    parser = argparse.ArgumentParser(prog=PROJECT, description="Serves models over HTTP.")
    version = f"{PROJECT} {importlib.metadata.version(PROJECT)}"
    parser.add_argument("--version", action="version", version=version)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands.values():
        inner = subparsers.add_parser(command.name, help=command.summary, description=command.summary)
        command.configure(inner)
        inner.set_defaults(command=command)
    return parser
