"""The fuzzer itself: what counts as a finding, and what is told of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sixfold.core.errors import InvalidRequest, StepFailed
from tests.fuzz.api import failures
from tests.fuzz.report import Found, Part, Report, table
from tests.fuzz.target import Finding, Target


def reader(name: str = "group.reader") -> Target:
    def read(data: bytes) -> None:
        if data == b"refuse":
            raise InvalidRequest("No.")
        if data == b"blame the server":
            raise StepFailed("No.")
        if data == b"break":
            raise KeyError("x")

    return Target(name=name, read=read, seeds=(b"take", b"refuse"))


def test_a_reader_may_take_an_input_or_refuse_it_as_the_clients_fault() -> None:
    assert reader().attempt(b"take")
    assert not reader().attempt(b"refuse")
    with pytest.raises(Finding, match="500"):
        reader().attempt(b"blame the server")
    with pytest.raises(KeyError):
        reader().attempt(b"break")


def test_a_report_is_the_sum_of_its_parts() -> None:
    good = Part(name="a", cases=3, seconds=1.0, slowest_s=0.5, rss_growth_mib=2.0)
    bad = Part(name="b", cases=4, seconds=1.0, slowest_s=0.1, rss_growth_mib=9.0, findings=(Found(what="KeyError"),))
    report = Report.of((good, bad))
    assert (report.findings, report.cases, report.slowest_s, report.rss_growth_mib) == (1, 7, 0.5, 9.0)
    assert "KeyError" in table(report)


def test_what_schemathesis_says_is_told_once_by_operation() -> None:
    said = (
        "____________ POST /v1/files ____________\n1. Test Case ID: x\n\n- Server error\n\n[500] Internal Server Error\n"
        "____________ GET /v1/models ____________\n- Undocumented Content-Type\n- Undocumented Content-Type\n"
    )
    assert failures(said) == ["POST /v1/files: Server error", "GET /v1/models: Undocumented Content-Type"]


@pytest.mark.skipif(sys.platform != "linux", reason="atheris is for Linux")
def test_an_input_that_breaks_a_reader_is_kept_and_the_next_one_is_read(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="make fuzz installs it")
    from tests.fuzz.explore import Explorer

    explorer = Explorer(reader(), tmp_path, 60.0)
    explorer.begin()
    assert explorer.progress.findings == []
    for data in (b"break", b"break", b"take"):
        explorer.read(data)
    (found,) = explorer.progress.findings
    assert found.what.startswith("KeyError at test_fuzzing.py")
    assert found.kept is not None
    assert Path(found.kept).read_bytes() == b"break"
    assert explorer.progress.cases == 4 + 3
