"""``pytest --sixfold-plugin NAME``: turns the conformance kit on. Every pytest of an environment that has Sixfold imports
this file, those of other projects as well: it imports nothing of Sixfold, and does nothing without its options."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the two options."""
    group = parser.getgroup("sixfold", "conformance of Sixfold's plugins")
    group.addoption(
        "--sixfold-plugin",
        metavar="NAME",
        help="hold this plugin (the name of its entry point) to what plugins promise",
    )
    group.addoption(
        "--sixfold-config",
        metavar="FILE",
        help="the configuration file whose models are tried; a YAML file among the arguments does the same",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Lets the kit collect, where it is wanted.

    Raises:
        UsageError: A plugin without a configuration, a configuration without a plugin, or one that is not there.
    """
    name: str | None = config.getoption("--sixfold-plugin")
    given: str | None = config.getoption("--sixfold-config")
    if name is None:
        if given is not None:
            raise pytest.UsageError("--sixfold-config needs --sixfold-plugin NAME: `sixfold plugins` lists the names.")
        return
    if given is None and not any(_is_yaml(argument) for argument in config.args):
        raise pytest.UsageError(
            f"--sixfold-plugin {name} has nothing to try: no YAML file is among the arguments. Give the configuration with the "
            f"models to try: `pytest --sixfold-plugin {name} config.yaml`, or --sixfold-config config.yaml beside other tests."
        )
    file = None if given is None else _found(config, given)
    from sixfold.core.testing.collection import Conformance

    config.pluginmanager.register(Conformance(name, file), "sixfold-conformance")
    # A file that the project names gives way to paths on the command line: what was asked for is all that is wanted.
    is_by_path = config.args_source is pytest.Config.ArgsSource.ARGS
    if file is not None and (_is_on_command_line(config) or not is_by_path):
        config.args.append(str(file))


def _is_yaml(argument: str) -> bool:
    return argument.partition("::")[0].endswith((".yaml", ".yml"))


def _is_on_command_line(config: pytest.Config) -> bool:
    """Whether ``--sixfold-config`` was typed, and is not from ``addopts``."""
    return any(str(each).partition("=")[0] == "--sixfold-config" for each in config.invocation_params.args)


def _found(config: pytest.Config, given: str) -> Path:
    """The file, from where pytest was called, or from the project's folder if its ini file names it."""
    for folder in (config.invocation_params.dir, config.rootpath):
        if (folder / given).is_file():
            return (folder / given).resolve()
    raise pytest.UsageError(f"--sixfold-config: no file {given} in {config.invocation_params.dir}.")
