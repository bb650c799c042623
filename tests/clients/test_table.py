"""docs/clients.md claims nothing without a test: each cell that says yes links to what asks for it, and nothing else is asked."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.clients.roster import CELLS, CLIENTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "clients.md"
_SCRIPTS = "tests/clients/scripts"
_LINK = re.compile(r"\[yes\]\(\.\./(?P<path>tests/[\w/]+\.(py|mjs))(#(?P<name>test_\w+))?\)")
_VERSION = re.compile(r"(?:==|@)([\w.]+)$")


def table() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def links() -> dict[tuple[str, str], re.Match[str]]:
    """The cells that claim something, by the client's name and the cell's in `roster.py`."""
    head, _, *rows = table()
    assert head[:2] == ["client", "version"]
    assert len(head) == 2 + len(CELLS)
    found = {}
    for client, _version, *cells in rows:
        assert len(cells) == len(CELLS), client
        for name, cell in zip(CELLS, cells, strict=True):
            if cell:
                link = _LINK.fullmatch(cell)
                assert link is not None, cell
                found[client, name] = link
    return found


def test_what_the_page_claims_of_a_client_of_the_roster_is_what_it_is_asked() -> None:
    claimed = {
        (client, cell): link["path"] for (client, cell), link in links().items() if link["path"].startswith(_SCRIPTS)
    }
    assert claimed == {(one.name, cell): f"{_SCRIPTS}/{one.script}" for one in CLIENTS for cell in one.cells}


def test_every_other_cell_that_claims_something_names_a_test_that_exists() -> None:
    others = [link for link in links().values() if not link["path"].startswith(_SCRIPTS)]
    assert len(others) > 5
    for link in others:
        assert link["name"] in names_in(ROOT / link["path"]), link[0]


def test_the_versions_on_the_page_are_those_that_are_run() -> None:
    pinned = {one.name: [_VERSION.findall(pin)[0] for pin in one.pins] for one in CLIENTS}
    constraints = (ROOT / "constraints-dev.txt").read_text()
    for client, versions, *_ in table()[2:]:
        if client in pinned:
            assert versions.split(", ") == pinned[client]
        else:
            assert f"=={versions}\n" in constraints, client
