"""reference/settings.md: every key of every file that an operator writes."""

from __future__ import annotations

from pydantic import BaseModel

from docs.generate.markdown import NOTE
from docs.generate.models import Sections
from sixfold.core.config import Settings
from sixfold.scaling.agent.config import AgentSettings
from sixfold.scaling.gateway.settings import GatewaySettings
from sixfold.scaling.hub.config import HubSettings
from sixfold.scaling.sim.availability import AvailabilitySettings
from sixfold.scaling.sim.settings import SimulationSettings
from sixfold.scaling.spec import ServiceSpec
from sixfold.scaling.up.settings import ClusterSettings

FILES: tuple[tuple[str, str, type[BaseModel], str], ...] = (
    (
        "sixfold serve",
        "Explained, with examples, sources, memory and environment variables, in [configuration](../config.md).",
        Settings,
        "",
    ),
    ("sixfold gateway", "See [the gateway](../gateway.md).", GatewaySettings, "gateway file"),
    ("sixfold up", "The part `cluster` of the same file; see [scaling](../scaling.md).", ClusterSettings, "cluster"),
    ("sixfold hub", "The part `hub` of its file; see [many sites](../hub.md).", HubSettings, "hub"),
    ("sixfold agent", "The part `agent` of its file; see [many sites](../hub.md).", AgentSettings, "agent"),
    (
        "sixfold simulate",
        "See [scaling](../scaling.md#simulating).",
        SimulationSettings,
        "simulation file",
    ),
    (
        "sixfold simulate --availability",
        "The part `availability`; see [availability](../availability.md).",
        AvailabilitySettings,
        "availability",
    ),
    (
        "sixfold scaled-object",
        "A service; see [scaling](../scaling.md#a-service).",
        ServiceSpec,
        "service file",
    ),
)
"""Command, where its file is explained, the settings, and the title of their section."""

WORDED = {
    ("Settings", "cache_dir"): "`$XDG_CACHE_HOME/sixfold`, else `~/.cache/sixfold`",
    ("ModelEntry", "name"): "the key",
    ("ModelEntry", "objective"): "`throughput`",
}


def page() -> str:
    """The whole page."""
    sections = Sections(WORDED)
    parts = [NOTE, "# Settings\n", _INTRODUCTION]
    for command, where, model, title in FILES:
        before = len(sections.parts)
        root = title if title in ("cluster", "hub", "agent", "availability") else ""
        sections.add(model, title or "The file", root)
        parts += [f"## {command}\n", where + "\n", *sections.parts[before:]]
    return "\n".join(parts)


_INTRODUCTION = """\
Every key of every file, by command: its type, its default and what it means. `NAME` stands for a key that you choose,
`[]` for the items of a list. Unknown keys and wrong values are refused with file, line and the nearest known key.
Options of a model (`models.NAME.options`) depend on its family: [families and their options](options.md).
"""
