"""A process of the fuzzer: imports one group of readers with their code watched, and lets atheris at one after the other.

Run by `readers`, as ``python -m tests.fuzz.explore GROUP FOLDER SECONDS READER...``: it needs atheris,
which the test suite does not. Each reader gets a process of its own, forked from this one: libFuzzer never comes back.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import msgspec

from tests.fuzz.report import Found, Progress
from tests.fuzz.target import TALKERS, Target
from tests.quiet import quiet

# By name: the checkers of a machine without it must not miss it.
_ATHERIS: Any = importlib.import_module("atheris")
_WATCHED = [
    "sixfold",
    "python_multipart",
    "yaml",
    "PIL",
    "starlette.responses",
    "prometheus_client",
    "llguidance",
    "gguf",
]
"""Packages whose branches the fuzzer follows: ours, and those to which ours leave the reading."""
_RSS_LIMIT_MIB = 2600
_HANG_S = 60
"""After which libFuzzer ends a reader that does not come back; what is slower than its budget is told before."""
_MAX_FINDINGS = 8
_SAVE_EVERY_S = 1.0


class Explorer:
    """Reads the inputs that libFuzzer makes up, and keeps those that break the reader. One per process.

    Args:
        target: The reader.
        folder: Where its progress and its findings go.
        seconds: After which it ends the process by itself: at the end of a forked process libraries of C++ wait for threads
            that did not come along, and die of it.
    """

    def __init__(self, target: Target, folder: Path, seconds: float) -> None:
        self._target = target
        self._seconds = seconds
        self._until_s: float | None = None
        self._folder = folder
        self._seen: set[str] = set()
        self._saved_s = 0.0
        self.progress = Progress()

    def begin(self) -> None:
        """Reads all seeds twice: what is made once and kept is no growth."""
        for _ in range(2):
            for data in (*self._target.seeds, *self._target.broke):
                self.read(data)
        self.progress.rss_before_mib = self.progress.rss_mib = rss_mib()
        self._until_s = monotonic() + self._seconds
        self.save()

    def read(self, data: bytes) -> None:
        """Reads one input; never raises."""
        began_s = perf_counter()
        try:
            self.progress.taken += self._target.attempt(data)
        except Exception as error:
            self._keep(data, _place_of(error))
        took_s = perf_counter() - began_s
        self.progress.cases += 1
        self.progress.slowest_s = max(self.progress.slowest_s, took_s)
        if took_s > self._target.budget_s:
            self._keep(data, f"took {took_s:.1f} s")
        now_s = monotonic()
        if now_s - self._saved_s > _SAVE_EVERY_S:
            self.save()
        if self._until_s is not None and now_s > self._until_s:
            self.save()
            os._exit(0)

    def save(self) -> None:
        """Writes down how far it has come."""
        self._saved_s = monotonic()
        self.progress.rss_mib = rss_mib()
        path = self._folder / "progress.json"
        path.with_suffix(".new").write_bytes(msgspec.json.encode(self.progress))
        path.with_suffix(".new").replace(path)

    def _keep(self, data: bytes, what: str) -> None:
        kind = what if not what.startswith("took") else "took"
        if kind in self._seen or len(self._seen) >= _MAX_FINDINGS:
            return
        self._seen.add(kind)
        kept = self._folder / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
        kept.write_bytes(data)
        self.progress.findings.append(Found(what=what, kept=str(kept)))
        self.save()


def rss_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _place_of(error: Exception) -> str:
    """The exception, and the last line of the product that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/site-packages/" not in frame.filename and "/tests/" not in frame.filename]
    frame = (ours or list(frames))[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error)[:160]}"


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def explore(target: Target, folder: Path, seconds: int) -> None:
    """Hands a reader to libFuzzer, which ends this process after the time."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for number, data in enumerate((*target.seeds, *target.broke)):
        (corpus / f"seed-{number}").write_bytes(data[: target.max_bytes])
    words = folder / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    log = (folder / "log").open("w")
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    explorer = Explorer(target, folder, seconds)
    explorer.begin()
    options: list[str] = [
        "fuzz",
        f"-max_total_time={seconds + _HANG_S}",
        f"-max_len={target.max_bytes}",
        f"-timeout={_HANG_S}",
        f"-rss_limit_mb={_RSS_LIMIT_MIB}",
        f"-artifact_prefix={folder}/",
        *([f"-dict={words}"] if target.words else []),
        str(corpus),
    ]
    _ATHERIS.Setup(options, explorer.read)
    _ATHERIS.Fuzz()


def main(group: str, folder: Path, seconds: int, names: Sequence[str]) -> None:
    """Explores readers of a group by their names, for so many seconds each."""
    with _ATHERIS.instrument_imports(include=_WATCHED):
        from tests.fuzz.targets import targets_of

        targets = [target for target in targets_of(group) if target.name in names]
    for target in targets:
        place = folder / target.name
        place.mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException), quiet(*TALKERS):
                explore(target, place, seconds)
            os._exit(99)
        status = os.waitpid(pid, 0)[1]
        (place / "status").write_text(str(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
