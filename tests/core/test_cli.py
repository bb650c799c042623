"""The command line: one message and status 2 for the operator's mistakes, and never a traceback."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sixfold.core import cli
from sixfold.core.cli.commands import builtin_commands
from sixfold.core.errors import PluginConflict, UsageError
from sixfold.core.hookspecs import Command, hookimpl
from sixfold.core.plugins import Plugins, load_plugins, new_manager


class CommandPlugin:
    """A plugin that offers one command."""

    def __init__(self, name: str, run: Callable[[argparse.Namespace], int]) -> None:
        self._command = Command(name=name, summary="For tests.", configure=self._configure, run=run)

    def _configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--times", type=int, default=1)

    @hookimpl
    def register_commands(self, register: Callable[[Command], None]) -> None:
        register(self._command)


def plugins_with(name: str, run: Callable[[argparse.Namespace], int]) -> Plugins:
    manager = new_manager()
    manager.register(CommandPlugin(name, run), name="test_plugin")
    return Plugins(manager)


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[argparse.Namespace], int]], None]:
    """Makes ``sixfold go`` run a function."""

    def install(run: Callable[[argparse.Namespace], int]) -> None:
        plugins = plugins_with("go", run)
        monkeypatch.setattr(cli, "load_plugins", lambda: plugins)

    return install


Offer = Callable[[Callable[[argparse.Namespace], int]], None]


def config(folder: Path, text: str) -> str:
    path = folder / "sixfold.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_plugins_command_gets_its_arguments_and_gives_the_status(offer: Offer) -> None:
    offer(lambda args: int(args.times))
    assert cli.main(["go", "--times", "7"]) == 7


def test_a_usage_error_is_one_message_on_stderr_and_status_2(offer: Offer, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_args: argparse.Namespace) -> int:
        raise UsageError("Turn it off and on again.")

    offer(fail)
    assert cli.main(["go"]) == 2
    assert capsys.readouterr() == ("", "sixfold: Turn it off and on again.\n")


def test_control_c_ends_without_a_traceback(offer: Offer, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    offer(interrupt)
    assert cli.main(["go"]) == 130
    assert capsys.readouterr().err == "\nsixfold: interrupted\n"


def test_a_mistake_of_our_own_keeps_its_traceback(offer: Offer) -> None:
    def bug(_args: argparse.Namespace) -> int:
        raise ZeroDivisionError

    offer(bug)
    with pytest.raises(ZeroDivisionError):
        cli.main(["go"])


def test_a_plugin_must_not_claim_a_built_in_command() -> None:
    plugins = plugins_with("serve", lambda _args: 0)
    with pytest.raises(PluginConflict, match="'test_plugin' registers the built-in command 'serve'"):
        cli.all_commands(plugins)


def test_the_built_in_commands_are_those_of_the_manual() -> None:
    assert [command.name for command in builtin_commands(load_plugins())] == [
        "serve",
        "pull",
        "models",
        "quantize-report",
        "plan",
        "bench",
        "hash-key",
        "new-plugin",
        "plugins",
    ]


def test_the_installed_command_runs_and_survives_a_closed_pipe() -> None:
    program = Path(sys.executable).with_name("sixfold")
    command = f"{program} --version; {program} plugins | head -c 1 > /dev/null; {program} nonsense; echo status $?"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stdout.startswith("sixfold ")
    assert result.stdout.endswith("status 2\n")
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


def test_pull_fetches_each_model_and_prints_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "modules.json").write_text("[]", encoding="utf-8")
    family = next(iter(sorted(name for name, each in load_plugins().families.items() if not each.missing())))
    path = config(tmp_path, f"models: {{m: {{source: 'file:m', family: {family}}}}}")
    assert cli.main(["pull", path]) == 0
    assert capsys.readouterr().out == f"m: {tmp_path / 'm'} ({family})\n"


def test_pull_takes_a_source_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.bin").touch()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pull", "file:model.bin"]) == 0
    assert capsys.readouterr().out == f"file:model.bin: {tmp_path / 'model.bin'}\n"


def test_pull_tells_every_model_that_failed_and_still_pulls_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").touch()
    family = next(iter(sorted(name for name, each in load_plugins().families.items() if not each.missing())))
    entry = f"{{source: 'file:NAME', family: {family}}}"
    models = ", ".join(f"{n}: {entry.replace('NAME', f)}" for n, f in (("a", "gone"), ("b", "there"), ("c", "lost")))
    assert cli.main(["pull", config(tmp_path, f"models: {{{models}}}")]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("b: ")
    assert f"models.a: No model at {tmp_path / 'gone'}" in err
    assert f"models.c: No model at {tmp_path / 'lost'}" in err


def test_a_broken_configuration_is_one_message_for_each_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, "models: {m: {source: 'file:m', replica: 1}}")
    for command in ("serve", "pull", "models"):
        assert cli.main([command, path]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"sixfold: {path}:1: models.m.replica: unknown key. Did you mean 'replicas'?")
        assert err.count("\n") == 1


def test_serve_refuses_what_the_plugins_cannot_serve_before_it_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, "models: {m: {source: 'file:m', family: no/such}}")
    assert cli.main(["serve", path]) == 2
    assert "models.m.family: no plugin offers the family 'no/such'" in capsys.readouterr().err
    assert cli.main(["serve", path, "--port", "70000"]) == 2
    assert capsys.readouterr().err.startswith("sixfold: --port: server.port: ")
