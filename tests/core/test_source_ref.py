"""Further sources inside a family's options: written like a model's source, fetched with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from sixfold.core.source_ref import SourceRef, resolve_refs, source_refs


class Voice(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    source: SourceRef
    pitch: float = 1.0


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "x"
    adapter: SourceRef | None = None
    voice: Voice | None = None


@pytest.mark.parametrize("given", ["hf:org/repo", {"hf": "org/repo"}])
def test_it_is_written_as_a_models_source(given: object) -> None:
    options = Options.model_validate({"adapter": given})
    assert options.adapter == SourceRef(source="hf:org/repo")


@pytest.mark.parametrize("given", ["no scheme", 7, {"hf": "a", "pypi": "b"}, "file:relative/path"])
def test_what_is_no_source_is_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        Options.model_validate({"adapter": given})


def test_nested_options_are_found_and_resolved_and_the_rest_stays() -> None:
    options = Options.model_validate({"adapter": "hf:a/b", "voice": {"source": "file:/v", "pitch": 2.0}})
    assert {ref.source for ref in source_refs(options)} == {"hf:a/b", "file:/v"}
    resolved = resolve_refs(options, lambda ref: Path("/cache") / ref.source.partition(":")[2].strip("/"))
    assert isinstance(resolved, Options)
    assert resolved.adapter is not None
    assert resolved.voice is not None
    assert resolved.adapter.local_path == Path("/cache/a/b")
    assert resolved.voice.source.local_path == Path("/cache/v")
    assert (resolved.name, resolved.voice.pitch) == ("x", 2.0)
    assert options.adapter is not None
    assert options.adapter.path is None


def test_resolved_options_cross_to_the_worker() -> None:
    resolved = resolve_refs(Options.model_validate({"adapter": "hf:a/b"}), lambda _ref: Path("/cache/ab"))
    assert Options.model_validate(resolved.model_dump(mode="json")) == resolved


def test_options_without_sources_are_left_alone() -> None:
    options = Options()
    assert source_refs(options) == ()
    assert resolve_refs(options, lambda _ref: Path()) is options


class Adapters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    adapters: dict[str, SourceRef] = {}
    other: dict[str, int] = {}


def test_a_mapping_of_sources_is_found_and_resolved_by_name() -> None:
    options = Adapters.model_validate({"adapters": {"sql": "hf:a/b", "law": "file:/law"}, "other": {"n": 1}})
    assert [ref.source for ref in source_refs(options)] == ["hf:a/b", "file:/law"]
    resolved = resolve_refs(options, lambda ref: Path("/cache") / ref.source[-1])
    assert isinstance(resolved, Adapters)
    assert {name: ref.local_path for name, ref in resolved.adapters.items()} == {
        "sql": Path("/cache/b"),
        "law": Path("/cache/w"),
    }
    assert resolved.other is options.other
