"""docs/reference says what the code says, and leaves out no hook, setting, metric, endpoint, attribute or subcommand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate.pages import FOLDER, PAGES

ROOT = Path(__file__).parents[2]
SOURCES = [path for top in ("core", "plugins", "scaling") for path in sorted((ROOT / top).rglob("*.py"))]


def written(*names: str) -> str:
    """The pages as they lie in the repository."""
    return "".join((FOLDER / name).read_text(encoding="utf-8") for name in names)


def calls(name: str) -> Iterator[ast.Call]:
    """Every call of a function or class of this name in the source."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if f"{name}(" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == name:
                    yield node


def texts(name: str, keyword: str) -> set[str]:
    """What these calls give for a keyword, or first, where it is written out."""
    found: set[str] = set()
    for call in calls(name):
        given = [each.value for each in call.keywords if each.arg == keyword] or call.args[:1]
        found |= {each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)}
    return found


@pytest.mark.parametrize("name", PAGES)
def test_each_page_is_what_the_code_says_now(name: str) -> None:
    assert written(name) == PAGES[name](), f"docs/reference/{name} is stale. Run: python -m docs.generate"


def test_no_other_file_lies_among_the_generated_pages() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES)


def test_every_hook_is_described() -> None:
    tree = ast.parse((ROOT / "core" / "hookspecs.py").read_text(encoding="utf-8"))
    hooks = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and any("hookspec" in ast.unparse(each) for each in node.decorator_list)
    ]
    assert len(hooks) > 5
    assert [name for name in hooks if f"\n## {name}\n" not in written("hooks.md")] == []


def settings_in(path: Path) -> Iterator[str]:
    """The fields of pydantic classes in a file whose fields have docstrings."""
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body if "use_attribute_docstrings" in text else []:
        if (
            isinstance(node, ast.ClassDef)
            and not node.decorator_list
            and "Struct" not in ast.unparse(node).partition("\n")[0]
        ):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.target.id


def test_every_setting_and_option_has_its_row() -> None:
    page = written("settings.md", "options.md")
    not_written_by_people = {
        "core/source_ref.py",  # written as a model's source
        "scaling/cluster/replica.py",  # what `sixfold up` tells Ray
    }
    missing: list[str] = []
    num_found = 0
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        if name in not_written_by_people or re.search(r"schema|forms", path.stem):  # bodies: `/openapi.json` has them
            continue
        for field in settings_in(path):
            num_found += 1
            if f"\n| `{field}` |" not in page:
                missing.append(f"{name}: {field}")
    assert num_found > 250
    assert missing == []


def test_every_metric_of_the_source_has_its_row() -> None:
    known = set(re.findall(r"^\| `sixfold:(\w+)` \|", written("metrics.md"), flags=re.MULTILINE))
    named = texts("MetricSpec", "name")
    for kind in ("Counter", "Histogram", "Gauge", "CounterMetricFamily", "GaugeMetricFamily", "HistogramMetricFamily"):
        named |= {name.removeprefix("sixfold:") for name in texts(kind, "name") if name.startswith("sixfold:")}
    assert len(named) > 60
    assert {name for name in named if not {name, f"{name}_total"} & known} == set()


def test_every_route_of_the_source_has_its_row() -> None:
    known = set(re.findall(r"^\| `\w+` \| `([^`]+)` \|", written("endpoints.md"), flags=re.MULTILINE))
    paths = texts("Route", "path") | texts("SocketRoute", "path")
    assert len(paths) > 20
    assert paths - known == set()


def test_every_subcommand_of_the_source_has_its_section() -> None:
    names = texts("Command", "name")
    assert len(names) > 8
    assert {name for name in names if f"\n## sixfold {name}\n" not in written("commands.md")} == set()


def test_every_attribute_of_spans_is_named() -> None:
    named = re.compile(r'"((?:gen_ai|sixfold|http)\.[a-z_.]+)"(?=[:\],])')
    places = [*(ROOT / "core" / "telemetry").glob("*.py"), ROOT / "core" / "serving" / "request_record.py"]
    places += [ROOT / "core" / "serving" / "submission_record.py", *(ROOT / "scaling" / "gateway").glob("*.py")]
    found = {name for path in places for name in named.findall(path.read_text(encoding="utf-8"))}
    assert len(found) > 10
    events = {"http.disconnect", "http.request", "http.response.start", "http.response.body"}  # ASGI's
    assert {name for name in found - events if f"`{name}`" not in written("metrics.md")} == set()
