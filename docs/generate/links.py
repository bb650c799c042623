"""Makes files of the repository into pages of the site: where each stands, where links lead, lists as the forge reads them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.generate.first_party import MODALITIES

ROOT = Path(__file__).parents[2]

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^\s*(```|~~~)")
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
_ITEM = re.compile(r"(?:[-*+]|\d+[.)]) ")
_NO_TEXT = re.compile(r"\s*$|#|\||>|<|```|~~~|    ")


def outside_pages() -> Mapping[str, str]:
    """Files outside of ``docs/`` that are pages or pictures of the site: path in the repository to path in the site."""
    found = {
        "CHANGELOG.md": "changelog.md",
        "SECURITY.md": "security.md",
        "bench/README.md": "benchmarks/method.md",
        "bench/gpu/README.md": "benchmarks/gpu.md",
    }
    found |= {f"plugins/{name}/README.md": f"modalities/reference/{name}.md" for name in MODALITIES}
    for path in sorted((ROOT / "bench" / "results").iterdir()):
        if path.suffix in (".md", ".svg"):
            found[f"bench/results/{path.name}"] = f"benchmarks/results/{path.name}"
    return found


class Links:
    """Rewrites the links of a page.

    Args:
        outside: See `outside_pages`.
        source_url: Where the repository's files can be read, such as ``https://forge/org/repo/blob/main``; empty: nowhere.
        complain: Called with a sentence for each link that leads nowhere.
    """

    def __init__(self, outside: Mapping[str, str], source_url: str, complain: Callable[[str], None]) -> None:
        self._outside = outside
        self._inside = {site: repository for repository, site in outside.items()}
        self._source_url = source_url.rstrip("/")
        self._complain = complain

    def rewrite(self, markdown: str, site_path: str) -> str:
        """The page with links as the site needs them.

        Args:
            markdown: Its text.
            site_path: Where it stands in the site.
        """
        here = self._inside.get(site_path, f"docs/{site_path}")

        def replaced(match: re.Match[str]) -> str:
            mark, text, target = match.groups()
            path, hash_mark, anchor = target.partition("#")
            if not path or ":" in path:
                return match[0]
            wanted = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
            found = self._site_path(wanted)
            if found is not None:
                relative = posixpath.relpath(found, posixpath.dirname(site_path) or ".")
                return f"{mark}[{text}]({relative}{hash_mark}{anchor})"
            if not (ROOT / wanted).exists():
                self._complain(f"{here}: the link to {target} leads nowhere")
                return match[0]
            if self._source_url:
                return f"{mark}[{text}]({self._source_url}/{wanted}{hash_mark}{anchor})"
            return f'<span title="{wanted}">{text}</span>'

        return _outside_code(markdown, lambda line: _LINK.sub(replaced, line))

    def _site_path(self, wanted: str) -> str | None:
        if wanted in self._outside:
            return self._outside[wanted]
        path = ROOT / wanted
        if path.is_dir():
            wanted, path = f"{wanted}/README.md", path / "README.md"
        if wanted.startswith("docs/") and path.is_file() and path.suffix != ".py":
            return wanted.removeprefix("docs/")
        return None


def separate_lists(markdown: str) -> str:
    """A blank line before each list that follows a line of text, which the forge's Markdown does without."""
    lines: list[str] = []
    in_code = False
    for line in markdown.splitlines():
        before = lines[-1] if lines else ""
        begins = not in_code and _ITEM.match(line) and not _ITEM.match(before) and not before.startswith("  ")
        if begins and not _NO_TEXT.match(before) and not _in_item(lines):
            lines.append("")
        if _FENCE.match(line):
            in_code = not in_code
        lines.append(line)
    return "\n".join(lines) + "\n"


def _in_item(lines: list[str]) -> bool:
    """Whether the last line continues an item of a list."""
    for line in reversed(lines):
        if not line.strip():
            return False
        if _ITEM.match(line):
            return True
    return False


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Changes what is neither in a fenced block nor in backticks."""
    lines: list[str] = []
    in_code = False
    for line in markdown.splitlines():
        if _FENCE.match(line):
            in_code = not in_code
        elif not in_code:
            line = _without_code(line, change)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _without_code(line: str, change: Callable[[str], str]) -> str:
    kept: list[str] = []

    def hide(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"\x00{len(kept) - 1}\x00"

    changed = change(_CODE.sub(hide, line))
    return re.sub("\x00(\\d+)\x00", lambda match: kept[int(match[1])], changed)
