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
        UsageError: A configuration without a plugin, or one that is not there.
    """
    name: str | None = config.getoption("--sixfold-plugin")
    given: str | None = config.getoption("--sixfold-config")
    if name is None:
        if given is not None:
            raise pytest.UsageError("--sixfold-config needs --sixfold-plugin NAME: `sixfold plugins` lists the names.")
        return
    file = None if given is None else _found(config, given)
    from sixfold.core.testing.collection import Conformance

    config.pluginmanager.register(Conformance(name, file), "sixfold-conformance")
    # What was asked for by path is all that is wanted; else the kit's items come beside the project's own tests.
    if file is not None and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args.append(str(file))


def _found(config: pytest.Config, given: str) -> Path:
    """The file, from where pytest was called, or from the project's folder if its ini file names it."""
    for folder in (config.invocation_params.dir, config.rootpath):
        if (folder / given).is_file():
            return (folder / given).resolve()
    raise pytest.UsageError(f"--sixfold-config: no file {given} in {config.invocation_params.dir}.")
