"""``python -m tests.fuzz --minutes 6 --json OUT``: fuzzes all readers and the API; exits with 1 if anything is found."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import msgspec

from tests.fuzz.report import Part, Report, table

_API_SHARE = 0.4
_NEEDED = ("atheris", "schemathesis")


def main() -> int:
    """Runs and reports; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0, help="for everything but starting the server")
    parser.add_argument("--json", type=Path, help="where to write the report")
    parser.add_argument("--keep", type=Path, help="an empty folder for findings and logs")
    parser.add_argument("--only", nargs="*", default=[], help="groups or readers, or 'api'; all unless given")
    wanted = parser.parse_args()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{', '.join(missing)} is not there. Run: pip install -c constraints-dev.txt --group fuzz")
    folder: Path = wanted.keep or Path(mkdtemp(prefix="sixfold-fuzz-report-"))
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Part] = []
    for part in _parts(wanted.minutes * 60, folder, wanted.only):
        parts.append(part)
        report = Report.of(tuple(parts))
        if wanted.json is not None:  # after every part: who runs this may be stopped
            wanted.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    report = Report.of(tuple(parts))
    print(table(report))
    print(f"findings and logs: {folder}")
    return 1 if report.findings or not report.cases else 0


def _parts(seconds: float, folder: Path, only: list[str]) -> Iterator[Part]:
    os.environ.setdefault("TRITON_INTERPRET", "1")
    from tests.fuzz.api import explore_api
    from tests.fuzz.readers import explore_readers

    with_api, readers = not only or "api" in only, [name for name in only if name != "api"]
    if not only or readers:
        yield from explore_readers(seconds * (1 - _API_SHARE if with_api else 1), folder, readers)
    if with_api:
        yield explore_api(seconds * (_API_SHARE if not only or readers else 1), folder)


if __name__ == "__main__":
    sys.exit(main())
