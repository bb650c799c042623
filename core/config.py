"""The one tree of settings: a YAML file, then environment variables, then flags, each overriding the one before.

Everything here is frozen and read once, at the edge; each part of the server gets only its own branch.
docs/config.md describes every field, and a test holds the two together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, field_validator, model_validator

from sixfold.core.config_overrides import override_from_environment, override_from_flags
from sixfold.core.environment import EnvironmentEntry
from sixfold.core.errors import ConfigError
from sixfold.core.parallel.settings import Parallel, written_parallel
from sixfold.core.runtime.quantization.policy import QuantizationPolicy, written_policy
from sixfold.core.serving.settings import ServerSettings
from sixfold.core.source_ref import source_text
from sixfold.core.telemetry.settings import TelemetrySettings
from sixfold.core.validation import validate
from sixfold.core.yaml_document import Document, Location, read_document

CACHE_VARIABLE = "SIXFOLD_CACHE_DIR"

CLUSTER_PART = "cluster"
"""The part of the file that says how the models are spread over machines; one server alone passes it over."""

_NAME = re.compile(r"[^\s\x00-\x1f]+")
_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Objective(BaseModel):
    """What the scheduler optimises. At most one target is set; none means throughput."""

    model_config = _FROZEN

    p95_latency_s: Seconds | None = None
    """95th percentile of the whole request, from arrival to the last byte, in seconds."""

    p95_ttft_s: Seconds | None = None
    """95th percentile of the time to the first increment, in seconds."""

    p95_itl_s: Seconds | None = None
    """95th percentile of the time between increments of one request, in seconds."""

    @model_validator(mode="after")
    def _one_target(self) -> Objective:
        targets = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(targets) > 1:
            raise ValueError(f"names {' and '.join(targets)}; a scheduler follows one target. Keep one.")
        return self


def _objective(value: JsonValue | Objective) -> object:
    if value == "throughput":
        return {}
    if isinstance(value, Objective) or (isinstance(value, dict) and value):
        return value
    targets = ", ".join(Objective.model_fields)
    raise ValueError(f"must be 'throughput' or a mapping with one of {targets} in seconds")


class Limits(BaseModel):
    """Bounds of one model's replica; null leaves the choice to the family."""

    model_config = _FROZEN

    max_queue_units: Annotated[int, Field(ge=1)] | None = None
    """Work in the family's units (tokens, frames) that may wait before new requests get 429; null: the family's own."""

    max_queue_s: Seconds | None = None
    """The same in seconds of work at the replica's measured speed: a bound beside those of deadlines, for clients that
    tell none. Four requests are always taken; at least twice what one takes alone; null: bounded in units only."""

    max_running_sequences: Annotated[int, Field(ge=1)] | None = None
    """Sequences that may share one step; null: the family's own."""

    max_step_units: Annotated[int, Field(ge=1)] | None = None
    """Units of work in one step; null: found by the scheduler from the objective."""

    request_timeout_s: Seconds | None = 600.0
    """A request older than this fails with 504, and one that would become so, by how long requests take lately, gets 429 at
    once; null: requests may take for ever."""

    watchdog_timeout_s: Seconds | None = None
    """A worker that is at one step, one result or one input for longer hangs: the log gets where its threads are, its requests
    fail with 503, and another takes its place. null: as ``request_timeout_s``, after which nobody waits for the step any more."""

    @property
    def hangs_after_s(self) -> float | None:
        """Seconds at one thing after which a worker hangs; None for never."""
        return self.watchdog_timeout_s or self.request_timeout_s


class ModelEntry(BaseModel):
    """One model of the registry: which files, which family serves them, and under which bounds."""

    model_config = _FROZEN

    name: str
    """The key of the entry; clients send it as ``model``."""

    source: Annotated[str, BeforeValidator(source_text)]
    """Where the files come from: ``scheme:reference``, or a mapping with the scheme as its one key."""

    family: str | None = None
    """``modality/library``; null: found from the model's own files."""

    options: dict[str, JsonValue] = {}
    """The family's own options; its documentation lists them."""

    objective: Annotated[Objective, BeforeValidator(_objective)] = Objective()
    """``throughput``, or a mapping with one latency target."""

    limits: Limits = Limits()
    """Bounds; see the table below."""

    aliases: tuple[str, ...] = ()
    """Further names under which clients find the model."""

    replicas: Annotated[int, Field(ge=1)] = 1
    """Worker processes that each hold the model."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda:\d+)$")] = "auto"
    """``auto`` (an accelerator if there is one), ``cpu``, or ``cuda:N``."""

    load: Literal["eager", "on_demand"] = "eager"
    """``eager``: when the server starts. ``on_demand``: when the first request comes, which waits for it."""

    idle_unload_s: Seconds | None = None
    """Seconds without a request after which the model leaves the memory; the next request loads it again. Null: never."""

    priority: int = 0
    """Who goes where memory is short: a model makes those of lower priority go, and those of its own in turns."""

    env: EnvironmentEntry | None = None
    """The Python of this model's workers, see the table below; null: the server's own. Needs ``family``."""

    quantization: Annotated[QuantizationPolicy | None, BeforeValidator(written_policy)] = None
    """Fewer bits for weights: a scheme such as ``int8``, or the mapping below; null: as the files have them."""

    parallel: Annotated[Parallel | None, BeforeValidator(written_parallel)] = None
    """Ranks that compute each step together: ``auto``, or the mapping below; null: one process a replica."""

    @field_validator("name", "aliases")
    @classmethod
    def _printable(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (value,) if isinstance(value, str) else value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name: it must be text without spaces")
        return value

    @model_validator(mode="after")
    def _family_of_env(self) -> ModelEntry:
        if self.env is not None and self.family is None:
            raise ValueError(
                "has an 'env' but no 'family': what is installed there is not looked through. Set 'family'"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The name and all aliases."""
        return (self.name, *self.aliases)


class Settings(BaseModel):
    """All settings of one server process."""

    model_config = _FROZEN

    models: dict[str, ModelEntry] = Field(min_length=1)
    """The models by name."""

    server: ServerSettings = ServerSettings()
    """The HTTP side."""

    cache_dir: Path
    """Where fetched and converted model files are kept."""

    memory_limits_bytes: dict[Annotated[str, Field(pattern=r"^(cpu|cuda:\d+)$")], Annotated[int, Field(ge=1)]] = {}
    """Most memory that the models may take of a device, such as ``{cpu: 8589934592}``; of others all there is."""

    telemetry: TelemetrySettings = TelemetrySettings()
    """Traces; see below."""

    @field_validator("models")
    @classmethod
    def _distinct(cls, models: dict[str, ModelEntry]) -> dict[str, ModelEntry]:
        owners: dict[str, str] = {}
        for entry in models.values():
            for name in entry.names:
                if name in owners:
                    raise ValueError(
                        f"the entries {owners[name]!r} and {entry.name!r} both claim the name {name!r}. Rename one."
                        if owners[name] != entry.name
                        else f"the entry {entry.name!r} claims the name {name!r} twice. Remove one alias."
                    )
                owners[name] = entry.name
        return models


def load_config(
    path: Path, *, environ: Mapping[str, str] | None = None, flags: Mapping[str, JsonValue] = MappingProxyType({})
) -> Settings:
    """Reads the configuration: the file, overridden by ``SIXFOLD_SERVER__*`` variables, overridden by flags.

    Args:
        path: The YAML file. Relative ``file:`` sources and ``cache_dir`` start at its folder.
        environ: Environment variables; those of the process unless given.
        flags: Fields of ``server`` from the command line; a None is no flag.

    Raises:
        ConfigError: With file, line, dotted path and what to do; all problems at once where possible.
    """
    environ = os.environ if environ is None else environ
    document = read_document(path, environ)
    folder = path.resolve().parent
    data: dict[str, JsonValue] = {name: value for name, value in document.root.items() if name != CLUSTER_PART}
    origins: dict[Location, str] = {}
    if "models" in data:
        data["models"] = _named_entries(data["models"], folder, document)
    data["cache_dir"] = _cache_dir(data.get("cache_dir"), folder, environ)
    server = data.get("server")
    if server is None or isinstance(server, dict):
        data["server"] = server = dict(server or {})
        override_from_environment(server, environ, origins)
        override_from_flags(server, flags, origins)
        if isinstance(server.get("data_dir"), str):
            server["data_dir"] = str((folder / Path(str(server["data_dir"])).expanduser()).resolve())

    def where(location: Location) -> str:
        overridden = (origins[location[:n]] for n in range(len(location), 0, -1) if location[:n] in origins)
        return next(overridden, document.where(location))

    return validate(Settings, data, where=where)


def default_cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """``SIXFOLD_CACHE_DIR``, else ``sixfold`` in the user's cache folder."""
    environ = os.environ if environ is None else environ
    if environ.get(CACHE_VARIABLE):
        return Path(environ[CACHE_VARIABLE]).expanduser().resolve()
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sixfold"


def absolute_source(source: str, folder: Path) -> str:
    """A relative ``file:`` source made absolute, so that it means the same in every process; others as they are."""
    scheme, _, reference = source.partition(":")
    return f"file:{(folder / Path(reference).expanduser()).resolve()}" if scheme == "file" and reference else source


def _named_entries(models: JsonValue, folder: Path, document: Document) -> JsonValue:
    if not isinstance(models, dict):
        return models
    entries: dict[str, JsonValue] = {}
    for name, entry in models.items():
        entries[name] = entry
        if isinstance(entry, dict):
            if "name" in entry:
                place = document.where(("models", name, "name"))
                raise ConfigError(f"{place}: models.{name}.name: the key is the name already. Remove 'name'.")
            source = entry.get("source")
            if isinstance(source, dict) and source.keys() == {"file"} and isinstance(source["file"], str):
                source = f"file:{source['file']}"
            if isinstance(source, str):
                source = absolute_source(source, folder)
            env = entry.get("env")
            if isinstance(env, dict) and isinstance(python := env.get("python"), str):
                # Not resolved: the interpreter of a venv is a link, and what is beside the link makes it one.
                entry = {**entry, "env": {**env, "python": str(folder / Path(python).expanduser())}}
            entries[name] = {**entry, "name": name} | ({"source": source} if "source" in entry else {})
    return entries


def _cache_dir(given: JsonValue, folder: Path, environ: Mapping[str, str]) -> JsonValue:
    if given is None or environ.get(CACHE_VARIABLE):
        return str(default_cache_dir(environ))
    return str((folder / Path(given).expanduser()).resolve()) if isinstance(given, str) else given
