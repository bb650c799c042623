"""What plugins may offer, and what happens when two claim one name or one of them is broken."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from sixfold.core.benchmark.workload import Workload
from sixfold.core.cli.listing import plugin_lines
from sixfold.core.errors import PluginConflict
from sixfold.core.family import Family
from sixfold.core.hookspecs import Api, Command, Plugin, Source, hookimpl
from sixfold.core.plugins import Plugins, load_plugins, new_manager


class Payload(msgspec.Struct):
    pass


def family(name: str, *, requires: tuple[str, ...] = (), extra: str = "shapes") -> Family:
    return Family(
        name=name,
        summary="For tests.",
        operations=frozenset({"draw"}),
        loader="nowhere:load",
        input_type=Payload,
        output_type=Payload,
        extra=extra,
        requires=requires,
    )


def offering(name: str, *families: Family) -> ModuleType:
    """A plugin module that registers these families."""
    module = ModuleType(name)

    @hookimpl
    def register_families(register: Callable[[Family], None]) -> None:
        for each in families:
            register(each)

    module.register_families = register_families  # type: ignore[attr-defined]
    return module


def plugins_of(*modules: ModuleType) -> Plugins:
    manager = new_manager()
    for module in modules:
        manager.register(module, name=module.__name__)
    return Plugins(manager)


def install(folder: Path, name: str, code: str, *, version: str = "1.2") -> None:
    """Puts a distribution into a folder as pip would: a module, and metadata with an entry point."""
    (folder / f"{name}_module.py").write_text(code, encoding="utf-8")
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[sixfold]\n{name} = {name}_module\n", encoding="utf-8")


def test_what_plugins_register_is_found_by_name_with_its_origin() -> None:
    plugins = plugins_of(offering("first", family("a/x")), offering("second", family("a/y"), family("b/x")))
    assert sorted(plugins.families) == ["a/x", "a/y", "b/x"]
    assert plugins.origin["family b/x"] == "second"


def test_two_families_of_one_name_raise_and_name_both_plugins() -> None:
    with pytest.raises(PluginConflict, match="'first' and 'second' both register the family 'a/x'"):
        plugins_of(offering("first", family("a/x")), offering("second", family("a/x")))


def test_one_plugin_that_registers_a_name_twice_conflicts_with_itself() -> None:
    with pytest.raises(PluginConflict, match="'first' and 'first'"):
        plugins_of(offering("first", family("a/x"), family("a/x")))


def test_two_apis_sources_or_commands_of_one_name_raise_as_well() -> None:
    class Nowhere:
        scheme = "nowhere"

        def resolve(self, reference: str, *, cache_dir: Path, progress: object) -> Path:
            raise NotImplementedError

    def module(name: str) -> ModuleType:
        made = ModuleType(name)

        @hookimpl
        def register_apis(register: Callable[[Api], None]) -> None:
            if "api" in name:
                register(Api(modality="m", factory="x:Y"))

        @hookimpl
        def register_sources(register: Callable[[Source], None]) -> None:
            if "source" in name:
                register(Nowhere())

        @hookimpl
        def register_commands(register: Callable[[Command], None]) -> None:
            if "command" in name:
                register(Command(name="go", summary="", configure=lambda _parser: None, run=lambda _args: 0))

        for hook in (register_apis, register_sources, register_commands):
            setattr(made, hook.__name__, hook)
        return made

    for kind in ("api", "source", "command"):
        with pytest.raises(PluginConflict, match=f"'{kind} 1' and '{kind} 2' both register the {kind}"):
            plugins_of(module(f"{kind} 1"), module(f"{kind} 2"))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (
            "@hookimpl\ndef register_familes(register): ...",
            "there is no hook 'register_familes'. Did you mean 'register_families'?",
        ),
        (
            "@hookimpl\ndef frobnicate(): ...",
            "there is no hook 'frobnicate'. Hooks are: convert_model, register_apis, ",
        ),
        (
            "@hookimpl\ndef register_apis(registrar): ...",
            "register_apis has no argument 'registrar'. Its arguments are: register.",
        ),
        (
            "@hookimpl(specname='register_api')\ndef mine(register): ...",
            "no hook 'register_api'. Did you mean 'register_apis'?",
        ),
    ],
)
def test_a_hook_that_does_not_exist_costs_its_own_plugin_only(
    written: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "typo", f"from sixfold.core import hookimpl\n{written}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plugins = load_plugins({"good": offering("good", family("good/whole"))})
    sys.modules.pop("typo_module")
    record = next(record for record in plugins.records if record.name == "typo")
    assert record.error is not None and words in record.error
    assert "good/whole" in plugins.families
    assert any(line.startswith("typo") and f"not loaded: {record.error}" in line for line in plugin_lines(plugins))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("def register_families(register): ...", "register_families is never called: it has no decorator @hookimpl."),
        ("def register_familes(register): ...", "no decorator @hookimpl. Did you mean 'register_families'?"),
        ("FAMILY = 1", "it offers nothing: no function has the decorator @hookimpl"),
        (
            "from sixfold.core import hookimpl\n@hookimpl\ndef register_apis(register): ...\ndef register_widgets(): ...",
            None,
        ),
    ],
)
def test_a_plugin_without_decorators_is_told_so(
    written: str, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "plain", written + "\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plugins = load_plugins()
    sys.modules.pop("plain_module")
    (line,) = (line for line in plugin_lines(plugins) if line.startswith("plain"))
    assert line.endswith("loaded") if words is None else "loaded, but " in line and words in line


def test_an_operation_that_no_api_asks_for_is_named_with_the_nearest() -> None:
    manager = new_manager()
    face = Api(modality="a", factory="x:Y", operations=frozenset({"chat", "complete"}), examples={"draw": "curl"})
    manager.register(Plugin(families=[family("a/x")], apis=[face]), name="sound")
    assert not any(line.startswith("Warning") for line in plugin_lines(Plugins(manager)))
    misspelt = replace(family("a/y"), operations=frozenset({"chta", "draw"}))
    manager.register(Plugin(families=[misspelt]), name="misspelt")
    (warning,) = (line for line in plugin_lines(Plugins(manager)) if line.startswith("Warning"))
    assert "'a/y' has the operation 'chta', which no Api here asks for. Did you mean 'chat'?" in warning


def test_every_operation_of_our_own_families_is_one_that_an_api_asks_for() -> None:
    assert not [line for line in plugin_lines(load_plugins()) if line.startswith("Warning")]


def test_a_plugin_whose_registration_raises_loses_its_own_offers_only() -> None:
    broken = ModuleType("broken")

    @hookimpl
    def register_families(register: Callable[[Family], None]) -> None:
        register(family("broken/half"))
        raise RuntimeError("out of luck")

    broken.register_families = register_families  # type: ignore[attr-defined]
    plugins = load_plugins({"broken": broken, "good": offering("good", family("good/whole"))})
    assert "good/whole" in plugins.families
    assert "broken/half" not in plugins.families
    assert "family broken/half" not in plugins.origin
    errors = {record.name: record.error for record in plugins.records}
    assert errors["broken"] == "RuntimeError: out of luck"
    assert errors["good"] is None


def test_what_is_registered_must_be_of_the_right_type() -> None:
    module = ModuleType("wrong")

    @hookimpl
    def register_families(register: Callable[[object], None]) -> None:
        register("a/x")

    module.register_families = register_families  # type: ignore[attr-defined]
    record = next(record for record in load_plugins({"wrong": module}).records if record.name == "wrong")
    assert record.error == "TypeError: register_families must register a Family, not a str"


def test_a_plugin_that_is_data_offers_what_it_was_given() -> None:
    class Nowhere:
        scheme = "nowhere"

        def resolve(self, reference: str, *, cache_dir: Path, progress: object) -> Path:
            raise NotImplementedError

    plugin = Plugin(
        families=[family("a/x")],
        apis=[Api(modality="a", factory="x:Y")],
        sources=[Nowhere()],
        commands=[Command(name="go", summary="", configure=lambda _parser: None, run=lambda _args: 0)],
        workloads=[Workload(name="w", summary="", path="/w", framing="json", make_body=lambda _model, _sample: {})],
    )
    manager = new_manager()
    manager.register(plugin, name="data")
    plugins = Plugins(manager)
    assert set(plugins.origin) == {"family a/x", "api a", "source nowhere", "command go", "workload w"}
    assert set(plugins.origin.values()) == {"data"}


def test_first_party_plugins_come_through_the_entry_points() -> None:
    records = {record.name: record for record in load_plugins().records}
    assert {"sources", "llm", "embedding", "asr", "tts", "image", "video"} <= set(records)
    assert records["sources"].distribution is not None
    assert records["sources"].distribution.startswith("sixfold ")


def test_a_third_partys_installed_plugin_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        tmp_path,
        "acme_shapes",
        "from sixfold.core.family import Family\n"
        "from sixfold.core.hookspecs import hookimpl\n"
        "@hookimpl\n"
        "def register_families(register):\n"
        "    register(Family(name='shapes/acme', summary='Shapes.', operations=frozenset(), loader='x:y',\n"
        "                    input_type=int, output_type=int, extra='gpu', requires=('acme_missing_module',)))\n",
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plugins = load_plugins()
    record = next(record for record in plugins.records if record.name == "acme_shapes")
    assert (record.module, record.distribution, record.error) == ("acme_shapes_module", "acme_shapes 1.2", None)
    assert plugins.families["shapes/acme"].missing() == ("acme_missing_module",)
    assert plugins.distribution_of("family shapes/acme") == "acme_shapes"
    sys.modules.pop("acme_shapes_module")


def test_a_broken_strangers_module_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "broken_shapes", "raise ValueError('not today')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plugins = load_plugins()
    record = next(record for record in plugins.records if record.name == "broken_shapes")
    assert record.error == "ValueError: not today"
    assert {"file", "hf", "pypi"} <= set(plugins.sources)


def test_a_plugin_with_the_name_of_another_raises_and_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "sources", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(PluginConflict, match="Two plugins are named 'sources'") as caught:
        load_plugins()
    assert "sources 1.2" in str(caught.value)
    assert "sixfold.core.sources.plugin" in str(caught.value)


def test_a_missing_requirement_is_found_without_importing_it() -> None:
    assert family("a/x", requires=("no_such_module", "no_such_package.inner", "json")).missing() == (
        "no_such_module",
        "no_such_package.inner",
    )
