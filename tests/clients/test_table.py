"""docs/clients.md claims nothing without a test: each cell that says yes links to one, and each test has its cell."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "clients.md"
_LINK = re.compile(r"\[yes\]\(\.\./(?P<path>tests/[\w/]+\.py)#(?P<name>test_\w+)\)")


def table() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_cell_that_claims_something_names_a_test_that_exists() -> None:
    head, _, *rows = table()
    assert len(rows) > 5
    for row in rows:
        assert len(row) == len(head)
        for cell in row[2:]:
            if cell == "":
                continue
            found = _LINK.fullmatch(cell)
            assert found is not None, cell
            assert found["name"] in names_in(ROOT / found["path"]), cell


def test_every_test_of_a_client_has_its_cell() -> None:
    linked = {(found["path"], found["name"]) for row in table() for cell in row if (found := _LINK.fullmatch(cell))}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path == Path(__file__):
            continue
        for name in names_in(path):
            if name.startswith("test_"):
                assert (str(path.relative_to(ROOT)), name) in linked, (path.name, name)


def test_the_versions_in_the_table_are_those_that_are_run() -> None:
    for row in table()[2:]:
        paths = {found["path"] for cell in row if (found := _LINK.fullmatch(cell))}
        own = [path for path in paths if path.startswith("tests/clients/")]
        text = "".join((ROOT / path).read_text() for path in own or ["constraints-dev.txt"])
        assert all(re.search(rf"(==|@){re.escape(version)}\b", text) for version in row[1].split(", ")), row
