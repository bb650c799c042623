"""reference/commands.md: every subcommand of ``sixfold`` with its arguments."""

from __future__ import annotations

import argparse

from docs.generate.first_party import is_own
from docs.generate.markdown import NOTE, cell, table
from sixfold.core.cli import all_commands
from sixfold.core.hookspecs import Command
from sixfold.core.plugins import load_plugins


def page() -> str:
    """The whole page."""
    plugins = load_plugins()
    own = [each for _, each in sorted(all_commands(plugins).items()) if is_own(plugins, each)]
    return "\n".join([NOTE, "# Commands\n", _INTRODUCTION, *map(_command, own)])


def _command(command: Command) -> str:
    parser = argparse.ArgumentParser(prog=f"sixfold {command.name}", add_help=False)
    command.configure(parser)
    rows = [_row(command, action) for action in parser._actions]
    return f"## sixfold {command.name}\n\n{cell(command.summary)}\n\n" + (
        table(("Argument", "Meaning"), rows) if rows else "No arguments.\n"
    )


def _row(command: Command, action: argparse.Action) -> tuple[str, str]:
    if not action.help:
        raise ValueError(f"{action.dest} of sixfold {command.name} has no help. Say what it does.")
    value = str(action.metavar or action.dest.upper())
    names = [f"`{name}`" if action.nargs == 0 else f"`{name} {value}`" for name in action.option_strings]
    choices = ", ".join(f"`{each}`" for each in action.choices or ())
    text = cell(action.help % {**vars(action), "prog": f"sixfold {command.name}"})
    return ", ".join(names) or f"`{value}`", text + (f"; one of {choices}" if choices else "")


_INTRODUCTION = """\
`sixfold COMMAND --help` prints the same; packages may bring further commands. The exit status is 0, 2 after a mistake
of usage or configuration, and 130 after Ctrl-C. `serve`, `gateway` and `up` drain at `SIGTERM` and then end; `serve`
and `up` read their file again at `SIGHUP`.
"""
