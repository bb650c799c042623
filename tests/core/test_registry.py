"""How an entry finds its family and files, and what a new configuration changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from sixfold.core.config import ModelEntry
from sixfold.core.errors import ConfigError
from sixfold.core.family import Family, ModelFiles
from sixfold.core.hookspecs import Progress, Source, hookimpl
from sixfold.core.plugins import Plugins, load_plugins, new_manager
from sixfold.core.registry import RegistryDiff, check_entry, diff, resolve_entry
from sixfold.core.runtime.quantization.methods import INT8_WEIGHTS
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.replica_set import load_message
from sixfold.core.source_ref import SourceRef


class Payload(msgspec.Struct):
    pass


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    depth: int = Field(default=1, ge=1)


def family(name: str, score: int = 0, *, suffix: str = "", requires: tuple[str, ...] = ()) -> Family:
    """A family that is ``score`` sure of every model whose path has the suffix."""
    return Family(
        name=name,
        summary="For tests.",
        operations=frozenset(),
        loader="nowhere:load",
        input_type=Payload,
        output_type=Payload,
        options=Options,
        extra="shapes",
        requires=requires,
        detect=lambda files: score if files.path.suffix == suffix else 0,
    )


class FolderSource:
    """Answers with a path below the cache and counts how often it is asked."""

    scheme = "here"

    def __init__(self) -> None:
        self.num_calls = 0

    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        self.num_calls += 1
        progress(reference, 1, 1)
        return cache_dir / reference


def plugins_of(*families: Family, source: Source | None = None, packs: bool = False) -> Plugins:
    module = ModuleType("test_plugin")

    @hookimpl
    def register_families(register: Callable[[Family], None]) -> None:
        for each in families:
            register(each)

    @hookimpl
    def register_sources(register: Callable[[Source], None]) -> None:
        register(source or FolderSource())

    @hookimpl
    def convert_model(files: ModelFiles) -> Path | None:
        return files.path.with_suffix(".unpacked") if packs and files.path.suffix == ".packed" else None

    for hook in (register_families, register_sources, convert_model):
        setattr(module, hook.__name__, hook)
    manager = new_manager()
    manager.register(module, name="test_plugin")
    return Plugins(manager)


def entry(name: str = "m", **fields: object) -> ModelEntry:
    return ModelEntry.model_validate({"name": name, "source": "here:model"} | fields)


def ignore(_what: str, _done: int, _total: int | None) -> None:
    return


def test_the_surest_family_serves_the_model(tmp_path: Path) -> None:
    plugins = plugins_of(family("a/weak", 10), family("b/strong", 90), family("c/none"))
    resolved = resolve_entry(entry(options={"depth": 4}), plugins, tmp_path, ignore)
    assert resolved.family.name == "b/strong"
    assert resolved.path == tmp_path / "model"
    assert resolved.options == Options(depth=4)


def test_a_given_family_needs_no_detection(tmp_path: Path) -> None:
    plugins = plugins_of(family("a/blind"), family("b/strong", 90))
    assert resolve_entry(entry(family="a/blind"), plugins, tmp_path, ignore).family.name == "a/blind"


def test_a_tie_asks_the_operator(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.m: the families a/x and b/x fit the files equally well\. Set"):
        resolve_entry(entry(), plugins_of(family("b/x", 50), family("a/x", 50)), tmp_path, ignore)


def test_files_that_no_family_knows_list_the_families(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.m: no family recognises .* one of: a/x, b/y\."):
        resolve_entry(entry(), plugins_of(family("b/y"), family("a/x")), tmp_path, ignore)


def test_a_missing_extra_is_told_with_the_pip_command_before_anything_is_fetched(tmp_path: Path) -> None:
    source = FolderSource()
    plugins = plugins_of(family("a/x", 50, requires=("no_such_module",)), source=source)
    with pytest.raises(ConfigError, match=r"needs no_such_module, .* Run: pip install 'sixfold\[shapes\]'"):
        resolve_entry(entry(family="a/x"), plugins, tmp_path, ignore)
    assert source.num_calls == 0
    with pytest.raises(ConfigError, match=r"pip install 'sixfold\[shapes\]'"):
        resolve_entry(entry(), plugins, tmp_path, ignore)


def test_a_missing_engine_falls_back_within_its_modality_only(tmp_path: Path) -> None:
    engine = family("a/engine", 90, requires=("no_such_module",))
    plugins = plugins_of(engine, family("a/plain", 50), family("b/other", 70))
    assert resolve_entry(entry(), plugins, tmp_path, ignore).family.name == "a/plain"
    with pytest.raises(ConfigError, match="needs no_such_module"):
        resolve_entry(entry(), plugins_of(engine, family("b/other", 70)), tmp_path, ignore)


def test_files_are_converted_only_when_no_family_can_load_them(tmp_path: Path) -> None:
    packed = entry(source="here:model.packed")
    unpacking = plugins_of(family("a/x", 50, suffix=".unpacked"), packs=True)
    assert resolve_entry(packed, unpacking, tmp_path, ignore).path == tmp_path / "model.unpacked"
    direct = plugins_of(family("a/x", 50, suffix=".unpacked"), family("a/y", 10, suffix=".packed"), packs=True)
    assert resolve_entry(packed, direct, tmp_path, ignore).path == tmp_path / "model.packed"


def test_wrong_options_are_refused_with_their_dotted_path_and_the_nearest_option(tmp_path: Path) -> None:
    plugins = plugins_of(family("a/x", 50))
    with pytest.raises(ConfigError, match=r"models\.m\.options\.dept: unknown key\. Did you mean 'depth'\?"):
        resolve_entry(entry(options={"dept": 2}), plugins, tmp_path, ignore)
    with pytest.raises(ConfigError, match=r"models\.m\.options\.depth: .*greater than or equal to 1 \(given: 0\)"):
        check_entry(entry(family="a/x", options={"depth": 0}), plugins)


def test_an_unknown_scheme_or_family_names_the_nearest(tmp_path: Path) -> None:
    plugins = plugins_of(family("a/plain"))
    with pytest.raises(ConfigError, match=r"models\.m\.source: .*'hree'\. Did you mean 'here'\? Known: here\."):
        check_entry(entry(source="hree:x"), plugins)
    with pytest.raises(ConfigError, match=r"models\.m\.family: .*'a/plane'\. Did you mean 'a/plain'\?"):
        check_entry(entry(family="a/plane"), plugins)


def test_a_plugin_that_could_not_load_is_mentioned_when_no_family_fits(tmp_path: Path) -> None:
    broken = ModuleType("broken")

    @hookimpl
    def register_families(register: Callable[[Family], None]) -> None:
        raise RuntimeError

    broken.register_families = register_families  # type: ignore[attr-defined]
    (tmp_path / "model").write_text("", encoding="utf-8")
    plugins = load_plugins({"broken_one": broken})
    with pytest.raises(ConfigError, match=r"broken_one.* not loaded: `sixfold plugins` says why"):
        resolve_entry(entry(source=f"file:{tmp_path / 'model'}"), plugins, tmp_path, ignore)


@st.composite
def entries_by_name(draw: st.DrawFn) -> dict[str, ModelEntry]:
    names = draw(st.sets(st.sampled_from("abcde")))
    return {
        name: entry(
            name,
            source=f"here:{draw(st.sampled_from('xy'))}",
            replicas=draw(st.integers(1, 2)),
            aliases=draw(st.sampled_from([(), ("other",)])),
        )
        for name in sorted(names)
    }


@given(old=entries_by_name(), new=entries_by_name())
def test_applying_the_diff_to_the_old_entries_gives_the_new_ones(
    old: dict[str, ModelEntry], new: dict[str, ModelEntry]
) -> None:
    change = diff(old, new)
    result = dict(old)
    for removed in change.removed:
        assert result.pop(removed.name) == removed
    for changed in change.changed:
        assert result[changed.old.name] == changed.old != changed.new
        assert {field: getattr(changed.old, field) for field in changed.fields} != {
            field: getattr(changed.new, field) for field in changed.fields
        }
        result[changed.new.name] = changed.new
    for added in change.added:
        assert added.name not in result
        result[added.name] = added
    assert result == new


@given(entries=entries_by_name())
def test_equal_entries_differ_in_nothing(entries: dict[str, ModelEntry]) -> None:
    assert diff(entries, dict(entries)) == RegistryDiff()
    assert diff(entries, dict(entries)).empty


def test_a_changed_entry_names_the_fields_that_differ() -> None:
    (changed,) = diff({"m": entry()}, {"m": entry(aliases=["n"], replicas=2)}).changed
    assert changed.fields == {"aliases", "replicas"}
    assert changed.needs_reload


def test_names_and_the_terms_of_the_memory_change_without_a_reload() -> None:
    new = entry(aliases=["n"], load="on_demand", idle_unload_s=9.0, priority=2)
    (changed,) = diff({"m": entry()}, {"m": new}).changed
    assert not changed.needs_reload


class SourcedOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    voice: SourceRef | None = None


def test_sources_inside_the_options_are_fetched_with_the_model(tmp_path: Path) -> None:
    source = FolderSource()
    plugins = plugins_of(replace(family("shapes/a", 1), options=SourcedOptions), source=source)
    entry = ModelEntry(name="m", source="here:model", options={"voice": "here:voice"})
    resolved = resolve_entry(entry, plugins, tmp_path, lambda _w, _d, _t: None)
    assert resolved.options == SourcedOptions(voice=SourceRef(source="here:voice", path=tmp_path / "voice"))
    assert source.num_calls == 2


def test_an_unknown_scheme_inside_the_options_is_refused_before_anything_is_fetched() -> None:
    plugins = plugins_of(replace(family("shapes/a", 1), options=SourcedOptions))
    entry = ModelEntry(name="m", source="here:model", family="shapes/a", options={"voice": "ther:voice"})
    with pytest.raises(ConfigError, match=r"models\.m\.options.*'ther'.*here"):
        check_entry(entry, plugins)


def test_a_quantization_that_the_family_does_not_offer_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    source = FolderSource()
    able = replace(family("a/able", 50), quantization=frozenset({INT8_WEIGHTS}))
    plugins = plugins_of(able, source=source)
    with pytest.raises(ConfigError, match=r"models\.m\.quantization: a/able does not offer fp8 weights\. .*int8"):
        check_entry(entry(family="a/able", quantization="fp8"), plugins)
    assert source.num_calls == 0
    with pytest.raises(ConfigError, match="does not offer fp8 weights"):
        resolve_entry(entry(quantization="fp8"), plugins, tmp_path, ignore)
    assert resolve_entry(entry(quantization="int8"), plugins, tmp_path, ignore).family is able


def test_another_quantization_is_a_change_that_reloads() -> None:
    old, new = entry(), entry(quantization="int8")
    assert diff({"m": old}, {"m": new}).changed[0].fields == {"quantization"}


def test_the_policy_reaches_the_worker_as_it_was_written(tmp_path: Path) -> None:
    able = replace(family("a/able", 50), quantization=frozenset({INT8_WEIGHTS}))
    policy = {"scheme": "int8", "skip": ["attention", {"first_blocks": 2}], "components": {"head": None}}
    resolved = resolve_entry(entry(quantization=policy), plugins_of(able), tmp_path, ignore)
    sent = load_message(resolved, num_cpus=1).quantization
    assert sent is not None
    assert (
        QuantizationPolicy.model_validate(msgspec.json.decode(msgspec.json.encode(sent))) == resolved.entry.quantization
    )
