"""What the commands print: tables, progress and the message when the server is up."""

import errno
import io
import logging
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from sixfold.core.cli.listing import model_lines, plugin_lines, table
from sixfold.core.cli.progress import ProgressReport
from sixfold.core.cli.serve import start_message
from sixfold.core.config import load_config
from sixfold.core.family import Family
from sixfold.core.hookspecs import Api, hookimpl
from sixfold.core.plugins import Plugins, load_plugins
from sixfold.core.telemetry.logs import configure_logging


class Payload(msgspec.Struct):
    pass


def family(name: str, requires: tuple[str, ...] = (), operations: tuple[str, ...] = ()) -> Family:
    return Family(
        name=name,
        summary=f"Serves {name}.",
        operations=frozenset(operations),
        loader="nowhere:load",
        input_type=Payload,
        output_type=Payload,
        extra="shapes",
        requires=requires,
    )


@pytest.fixture
def plugins() -> Plugins:
    module = ModuleType("shapes_module")

    @hookimpl
    def register_families(register: Callable[[Family], None]) -> None:
        register(family("shapes/ready"))
        register(family("shapes/lacking", ("no_such_module",)))

    @hookimpl
    def register_apis(register: Callable[[Api], None]) -> None:
        examples = {"draw": 'draw $url/$model -d \'{"cost": "$5"}\'\nsecond', "name": "name $url/$model"}
        register(Api(modality="shapes", factory="x:Y", examples=examples))

    module.register_families = register_families  # type: ignore[attr-defined]
    module.register_apis = register_apis  # type: ignore[attr-defined]
    broken = ModuleType("broken_module")

    @hookimpl(specname="register_families")
    def break_down(register: Callable[[Family], None]) -> None:
        raise RuntimeError("out of luck")

    broken.register_families = break_down  # type: ignore[attr-defined]
    return load_plugins({"shapes": module, "broken": broken})


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    assert table(("A", "B"), [("long cell", "x"), ("y", "z")]) == ["A          B", "long cell  x", "y          z"]


def test_plugins_are_listed_with_their_origin_and_with_why_something_is_missing(plugins: Plugins) -> None:
    lines = plugin_lines(plugins)
    by_name = {line.split()[0]: line for line in lines if line}
    assert by_name["sources"].endswith("loaded")
    assert "sixfold 0." in by_name["sources"]
    assert "not loaded: RuntimeError: out of luck" in by_name["broken"]
    assert "the program" in by_name["shapes"]
    assert "ready" in by_name["shapes/ready"]
    assert "missing no_such_module: pip install 'sixfold[shapes]'" in by_name["shapes/lacking"]
    assert "Sources: file (sources), hf (sources), pypi (sources)" in lines


def test_models_are_listed_with_what_keeps_them_from_being_served(plugins: Plugins, tmp_path: Path) -> None:
    path = tmp_path / "sixfold.yaml"
    path.write_text(
        "models:\n  good: {source: 'hf:a/b', aliases: [x, z], objective: {p95_ttft_s: 0.3}}\n"
        "  bad: {source: 'hf:a/b', family: shapes/lacking, replicas: 2}\n",
        encoding="utf-8",
    )
    lines = model_lines(load_config(path, environ={}), plugins)
    assert lines[1].split() == ["good", "x,", "z", "(from", "its", "files)", "1", "auto", "p95_ttft_s=0.3", "hf:a/b"]
    assert lines[2].split() == ["bad", "-", "shapes/lacking", "2", "auto", "throughput", "hf:a/b"]
    assert lines[4].startswith("models.bad: the family 'shapes/lacking' needs no_such_module")


def test_the_start_message_fills_in_the_address_and_a_model_of_the_modality(plugins: Plugins) -> None:
    pens = family("shapes/ready", operations=("draw",))
    served = {"other": family("no/api", operations=("draw",)), "mine": pens, "yours": pens}
    message = start_message(plugins, served, "http://127.0.0.1:9")
    assert message.startswith("Sixfold serves other, mine, yours on http://127.0.0.1:9\n")
    assert 'draw http://127.0.0.1:9/mine -d \'{"cost": "$5"}\'' in message
    assert message.count("draw") == 1
    assert "second" in message
    assert "browser" not in message
    assert "browser" in start_message(plugins, served, "http://127.0.0.1:9", has_page=True)
    assert "draw" not in start_message(plugins, {"other": family("no/api")}, "http://127.0.0.1:9")


def test_the_start_message_shows_of_a_model_the_first_call_that_its_family_answers(plugins: Plugins) -> None:
    namer, both = family("shapes/namer", operations=("name",)), family("shapes/both", operations=("draw", "name"))
    message = start_message(plugins, {"namer": namer}, "http://127.0.0.1:9")
    assert "name http://127.0.0.1:9/namer" in message
    assert "draw" not in message
    assert "name " not in start_message(plugins, {"both": both}, "http://127.0.0.1:9")
    message = start_message(plugins, {"namer": namer, "both": both}, "http://127.0.0.1:9")
    assert "draw http://127.0.0.1:9/both" in message
    assert "name http://127.0.0.1:9/namer" in message


def test_progress_without_a_terminal_is_a_line_at_each_quarter() -> None:
    stream = io.StringIO()
    with ProgressReport(stream) as report:
        for percent in range(0, 101):
            report.update("model", percent * 1_000_000, 100_000_000)
        report.update("model", 100_000_000, 100_000_000)
        report.update("asking", 0, None)
        report.update("asking", 0, None)
        report.update_fraction("loading", 1.0)
    assert stream.getvalue().splitlines() == [
        *(f"model: {mb}.0 of 100.0 MB" for mb in (0, 25, 50, 75, 100)),
        "asking",
        "loading: 100%",
    ]


def test_progress_that_can_not_be_written_stops_nothing() -> None:
    with ProgressReport(FullDisk()) as report:
        report.update_fraction("loading", 0.5)
        report.update_fraction("loading", 1.0)
    with closing(io.StringIO()) as stream:
        report = ProgressReport(stream)
    report.update_fraction("after the stream has been closed", 1.0)


class FullDisk(io.StringIO):
    def write(self, text: str, /) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_bars_until_they_are_stopped() -> None:
    stream = Terminal()
    with ProgressReport(stream) as report:
        threads = [threading.Thread(target=report.update, args=(f"model {n}", 5, 10)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report.update("asking", 0, None)
        report.stop_bars()
        drawn = stream.getvalue()
        report.update_fraction("later", 1.0)
    assert all(f"model {n}" in drawn for n in range(4))
    assert "asking" in drawn
    assert stream.getvalue().removeprefix(drawn) == "later: 100%\n"


@contextmanager
def bare_logging() -> Generator[logging.Logger, None, None]:
    """The root logger without pytest's handlers, and afterwards as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("watchfiles").setLevel(logging.NOTSET)


def test_log_lines_go_to_what_is_stderr_at_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    with bare_logging() as root:
        configure_logging("info")
        for stream in (io.StringIO(), io.StringIO()):  # bars replace stderr while they are drawn
            monkeypatch.setattr("sys.stderr", stream)
            root.info("hello")
            root.debug("too quiet")
            assert stream.getvalue().endswith("INFO    root: hello\n")


def test_file_events_are_not_logged_or_a_log_beside_the_configuration_would_never_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with bare_logging():
        configure_logging("debug")
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        logging.getLogger("watchfiles.main").info("1 change detected")
        assert stream.getvalue() == ""
