"""Entry point of what serves with many replicas: its commands; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

from sixfold.core.hookspecs import Command, hookimpl
from sixfold.scaling.autoscale import command as scaled_object
from sixfold.scaling.hub import command as hub
from sixfold.scaling.manifests import command as manifests
from sixfold.scaling.sim import command as simulate
from sixfold.scaling.top import command as top
from sixfold.scaling.up import command as up


@hookimpl
def register_commands(register: Callable[[Command], None]) -> None:
    """``sixfold up``, ``manifests``, ``simulate``, ``scaled-object``, ``hub``, ``agent`` and ``top``."""
    register(up.COMMAND)
    register(manifests.COMMAND)
    register(simulate.COMMAND)
    register(scaled_object.COMMAND)
    register(hub.HUB)
    register(hub.AGENT)
    register(top.COMMAND)
