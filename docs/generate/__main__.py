"""``python -m docs.generate``: writes the reference pages; with ``--check`` it only names those that are stale."""

from __future__ import annotations

import sys

from docs.generate.pages import FOLDER, PAGES, stale


def main() -> int:
    """0, or 1 if a page was stale and only checked."""
    changed = stale()
    if "--check" in sys.argv:
        for name in changed:
            print(f"docs/reference/{name} is stale. Run: python -m docs.generate", file=sys.stderr)
        return 1 if changed else 0
    FOLDER.mkdir(exist_ok=True)
    for name in changed:
        (FOLDER / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"wrote docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
