"""Links between pages lead somewhere, on the forge and in the site, and every page can be found."""

from __future__ import annotations

import functools
import posixpath
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.generate.links import Links, outside_pages, separate_lists

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("plugins/*/README.md"),
        *ROOT.glob("*.md"),
        ROOT / "bench" / "README.md",
    ]
)
COMMANDS = set(re.findall(r"^## sixfold (\S+)$", (ROOT / "docs/reference/commands.md").read_text(), re.MULTILINE))
_FILE = re.compile(
    r"(?<![\w/.-])((?:core|plugins|scaling|bench|tests|docs|examples|deploy)/[\w/.-]+\.(?:py|md|yaml|json|txt|svg))\b"
)
_ELSEWHERE = {"deploy/config.yaml"}
"""What the reader makes."""

_LINK = re.compile(r"\]\(([^()\s]+)\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


@functools.cache
def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings, as the forge and Python-Markdown make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        kept = "".join(letter for letter in plain.lower() if letter.isalnum() or letter in " -_")
        found.add("-".join(kept.split()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    dead: list[str] = []
    for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if ":" in path:
            continue
        file = page if not path else Path(posixpath.normpath(page.parent / path))
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in slugs(file)):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_and_command_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(_FILE.findall(text)) - _ELSEWHERE
    assert {name for name in named if not any((base / name).exists() for base in (ROOT, page.parent))} == set()
    commands = set(re.findall(r"(?:`|^|\| )sixfold ([a-z][a-z-]+)(?= |`|$)", text, re.MULTILINE))
    assert commands - COMMANDS == set()


def test_every_page_of_docs_stands_in_the_navigation() -> None:
    def files(entry: str | list[Any] | dict[str, Any]) -> set[str]:
        if isinstance(entry, str):
            return {entry}
        inner = list(entry.values()) if isinstance(entry, dict) else entry
        found: set[str] = set()
        return found.union(*map(files, inner))

    listed = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    outside = {site for site in outside_pages().values() if "/results/" not in site}
    assert listed - pages - outside == set()
    assert {page for page in (pages | outside) - listed if not page.startswith("decisions/")} == set()


def test_every_decision_is_listed() -> None:
    page = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in (ROOT / "docs" / "decisions").glob("*.md")} - {"README.md"}
    assert {name for name in names if f"]({name})" not in page} == set()


def test_links_out_of_docs_lead_into_the_site_or_to_the_source_and_dead_ones_are_told() -> None:
    complaints: list[str] = []
    links = Links(
        {"plugins/llm/README.md": "modalities/reference/llm.md"}, "https://forge/blob/main", complaints.append
    )
    text = "[a](../plugins/llm/README.md#options) [b](../core/config.py) `[c](../x.py)` [d](../gone.md) [e](decisions)"
    assert links.rewrite(text, "config.md") == (
        "[a](modalities/reference/llm.md#options) [b](https://forge/blob/main/core/config.py) `[c](../x.py)` "
        "[d](../gone.md) [e](decisions/README.md)\n"
    )
    assert complaints == ["docs/config.md: the link to ../gone.md leads nowhere"]
    back = links.rewrite("[config](../../docs/config.md)", "modalities/reference/llm.md")
    assert back == "[config](../../config.md)\n"


def test_code_is_named_where_no_source_can_be_linked() -> None:
    links = Links({}, "", pytest.fail)
    assert links.rewrite("[b](../core/config.py#L1)", "a.md") == '<span title="core/config.py">b</span>\n'


def test_a_list_after_text_gets_its_blank_line_but_not_within_items_or_code() -> None:
    assert (
        separate_lists("text\n- a\n  more\n- b\n```\nx\n- c\n```\n") == "text\n\n- a\n  more\n- b\n```\nx\n- c\n```\n"
    )
