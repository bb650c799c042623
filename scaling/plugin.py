"""Entry point of what serves with many replicas: its commands; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

from sixfold.core.hookspecs import Command, hookimpl
from sixfold.scaling.autoscale import command as scaled_object
from sixfold.scaling.hub import command as hub
from sixfold.scaling.sim import command as simulate
from sixfold.scaling.top import command as top


@hookimpl
def register_commands(register: Callable[[Command], None]) -> None:
    """``sixfold simulate``, ``sixfold scaled-object``, ``sixfold hub``, ``sixfold agent`` and ``sixfold top``."""
    register(simulate.COMMAND)
    register(scaled_object.COMMAND)
    register(hub.HUB)
    register(hub.AGENT)
    register(top.COMMAND)
