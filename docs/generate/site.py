"""Hooks of MkDocs: files from outside of ``docs/`` become pages, links fit, and a stale reference fails a strict build."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parents[2]))  # MkDocs loads this file by its path

from docs.generate.links import ROOT, Links, outside_pages, separate_lists
from docs.generate.pages import stale

SOURCE_URL_VARIABLE = "SIXFOLD_DOCS_SOURCE_URL"
"""Where links to code lead; without it, code is named and not linked."""

_log = logging.getLogger("mkdocs.sixfold")
_LINKS = Links(outside_pages(), os.environ.get(SOURCE_URL_VARIABLE, ""), _log.warning)


def on_pre_build(config: MkDocsConfig) -> None:
    """Warns of reference pages that are not what the code says; a strict build fails then."""
    for name in stale():
        _log.warning("reference/%s is stale. Run: python -m docs.generate", name)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures from outside."""
    for repository, site in outside_pages().items():
        files.append(File.generated(config, site, abs_src_path=str(ROOT / repository)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fits links and lists."""
    return separate_lists(_LINKS.rewrite(markdown, page.file.src_uri))
