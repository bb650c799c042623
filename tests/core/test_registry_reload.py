"""A changed configuration is accepted as a whole or not at all."""

from pathlib import Path

import pytest

from sixfold.core.config import Settings, load_config
from sixfold.core.plugins import Plugins, load_plugins
from sixfold.core.reload import Reload, reload_settings


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def read(folder: Path, text: str) -> Settings:
    path = folder / "sixfold.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, environ={})


def reload(folder: Path, before: str, after: str, plugins: Plugins) -> tuple[Settings, Reload]:
    current = read(folder, before)
    return current, reload_settings(current, lambda: read(folder, after), plugins)


A = "a: {source: 'file:/a'}"
B = "b: {source: 'file:/b'}"


def test_added_removed_and_changed_models_are_told_apart(tmp_path: Path, plugins: Plugins) -> None:
    _, outcome = reload(
        tmp_path,
        f"models: {{{A}, {B}}}",
        "models: {b: {source: 'file:/b', replicas: 2}, c: {source: 'file:/c'}}",
        plugins,
    )
    assert outcome.error is None
    assert [entry.name for entry in outcome.diff.added] == ["c"]
    assert [entry.name for entry in outcome.diff.removed] == ["a"]
    assert [(change.new.name, set(change.fields)) for change in outcome.diff.changed] == [("b", {"replicas"})]
    assert set(outcome.settings.models) == {"b", "c"}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("models: {a: [", "not valid YAML"),
        ("models: {a: {source: 'file:/a', replica: 2}}", "unknown key"),
        ("models: {a: {source: 'nowhere:/a'}}", "no plugin offers the scheme 'nowhere'"),
        (f"models: {{{A}, b: {{source: 'file:/b', family: no/such}}}}", "no plugin offers the family 'no/such'"),
        ("models: {a: {source: 'file:${NOT_SET}'}}", "NOT_SET is not set"),
    ],
)
def test_a_broken_file_changes_nothing_and_says_why(tmp_path: Path, plugins: Plugins, broken: str, reason: str) -> None:
    current, outcome = reload(tmp_path, f"models: {{{A}}}", broken, plugins)
    assert outcome.settings is current
    assert outcome.diff.empty
    assert outcome.error is not None
    assert reason in outcome.error


def test_an_equal_file_changes_nothing(tmp_path: Path, plugins: Plugins) -> None:
    current, outcome = reload(tmp_path, f"models: {{{A}}}", f"# a comment\nmodels:\n  {A}\n", plugins)
    assert outcome == Reload(settings=current, diff=outcome.diff)
    assert outcome.diff.empty


def test_server_settings_keep_their_values_and_are_named(tmp_path: Path, plugins: Plugins) -> None:
    current, outcome = reload(
        tmp_path,
        f"models: {{{A}}}",
        f"{{models: {{{B}}}, server: {{port: 9, drain_timeout_s: 1}}, cache_dir: /elsewhere, "
        "memory_limits_bytes: {cpu: 9}}",
        plugins,
    )
    assert outcome.needs_restart == ("server.port", "server.drain_timeout_s", "cache_dir", "memory_limits_bytes")
    assert outcome.settings.server == current.server
    assert outcome.settings.cache_dir == current.cache_dir
    assert set(outcome.settings.models) == {"b"}
