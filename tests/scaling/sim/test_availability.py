"""The arithmetic of availability, by hand, in its limits, and as the document prints it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.cli import main
from sixfold.core.errors import ConfigError
from sixfold.scaling.sim.availability import (
    YEAR_S,
    AvailabilitySettings,
    LoadSettings,
    Measured,
    availability,
    costs,
    read_measured,
    shortage,
    variants,
)

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples/availability/two-regions.yaml"


def model(**failure: Any) -> AvailabilitySettings:
    one = {"per_year": 2, "units": 3, "share": 0.25, "detect_s": 8, "restore_s": 100, "source": "a test", **failure}
    return AvailabilitySettings.model_validate(
        {
            "requests": {"mean_s": 4, "unreplayable": 0.5},
            "load": {"peak": 0.5, "low": 0.5},
            "measured": "run.json",
            "failures": {"unit": one},
        }
    )


def test_one_failure_by_hand() -> None:
    (cost,) = costs(model(shortage=0.1), None)
    # 0.25 x 4 s x 0.5 in flight, 0.25 x 8 s until noticed, 0.1 x 100 s without room
    assert cost.per_year == 6
    assert cost.each_s == pytest.approx(0.5 + 2 + 10)
    assert cost.year_s == pytest.approx(75)
    assert availability([cost]) == pytest.approx(1 - 75 / YEAR_S)


def test_a_lost_half_is_missed_only_by_what_the_other_half_cannot_bear() -> None:
    assert shortage(0.5, LoadSettings(peak=0.5, low=0.5)) == 0
    assert shortage(0.5, LoadSettings(peak=0.8, low=0.8)) == pytest.approx(0.3 / 0.8)
    assert shortage(1.0, LoadSettings(peak=0.8, low=0.2)) == pytest.approx(1)
    day = shortage(0.5, LoadSettings(peak=0.8, low=0.2))
    assert 0 < day < 0.3 / 0.8


def test_without_failures_of_its_requests_a_unit_costs_nothing() -> None:
    (cost,) = costs(model(share=0), None)
    assert (cost.year_s, availability([cost])) == (0, 1)


def test_what_was_measured_bounds_what_may_fail_and_more_requests_bound_it_better() -> None:
    assert Measured(num_exposed=300, num_failed=0, restore_s=24).fails == pytest.approx(0.01)
    assert Measured(num_exposed=2, num_failed=0, restore_s=24).fails == 1
    measured = Measured(num_exposed=30, num_failed=0, restore_s=50)
    (cost,) = costs(model(fails_until_detected="measured", restore_s="measured", shortage=0.1), measured)
    assert cost.each_s == pytest.approx(0.5 + 0.25 * 8 * 0.1 + 5)


SHARES = st.floats(0, 1)
TIMES = st.floats(0, 1e4)


@settings(deadline=None)
@given(SHARES, TIMES, TIMES, SHARES, st.floats(0, 100), st.floats(1, 3))
def test_worse_is_never_better(
    share: float, detect_s: float, restore_s: float, fails: float, per_year: float, factor: float
) -> None:
    figures = {"share": share, "detect_s": detect_s, "restore_s": restore_s, "fails_until_detected": fails}
    at_best = availability(costs(model(**figures, per_year=per_year), None))
    assert 0 <= at_best <= 1
    for name, value in (("detect_s", detect_s), ("restore_s", restore_s), ("per_year", per_year)):
        worse = {**figures, "per_year": per_year, name: value * factor}
        assert availability(costs(model(**worse), None)) <= at_best + 1e-12
    assert (
        availability(costs(model(**{**figures, "share": min(1, share * factor)}, per_year=per_year), None))
        <= at_best + 1e-12
    )


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0.01, 1), st.floats(0, 1))
def test_a_shortage_is_a_share_and_grows_with_what_is_lost(share: float, peak: float, low: float) -> None:
    load = LoadSettings(peak=peak, low=min(low, peak))
    assert 0 <= shortage(share, load) <= 1 + 1e-9
    assert shortage(share, load) >= shortage(share / 2, load) - 1e-9


def test_the_example_keeps_four_nines_and_the_document_prints_what_the_command_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["simulate", "--availability", str(EXAMPLE)]) == 0
    document = (ROOT / "docs/availability.md").read_text(encoding="utf-8")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line and line not in document] == []
    assert any("4.4 nines" in line and "kept" in line for line in lines)


def test_a_model_that_misses_its_objective_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.yaml"
    one = "{per_year: 12, share: 1, detect_s: 3600, restore_s: 0, source: x}"
    path.write_text(
        f"availability: {{failures: {{all: {one}}}, what_if: {{rare: {{failures: {{all: {{per_year: 0}}}}}}}}}}"
    )
    assert main(["simulate", "--availability", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "not kept" in printed and "what if rare: 100.0000%, all nines" in printed


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("trace: {}", "the key 'availability' must hold a mapping"),
        ("availability: {failures: {}}", "availability.failures"),
        ("availability: {failures: {a: {per_year: -1}}}", "availability.failures.a.per_year"),
        (
            "availability: {failures: {a: {ONE, restore_s: measured}}}",
            "Set measured to a result of bench/region_loss.py",
        ),
        (
            "availability: {measured: no.json, failures: {a: {ONE, restore_s: measured}}}",
            "Run it again",
        ),
        (
            "availability: {failures: {a: {ONE, restore_s: 1}}, what_if: {w: {lod: {}}}}",
            "there is no 'lod'",
        ),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text.replace("ONE", "per_year: 1, share: 1, detect_s: 1, source: s"))
    assert main(["simulate", "--availability", str(path)]) == 2
    assert complaint in capsys.readouterr().err


def test_a_run_in_which_replicas_never_came_back_measures_nothing(tmp_path: Path) -> None:
    counts = [{"at_s": float(at_s), "regions": {"eu": 2, "us": 2 * (at_s < 3)}} for at_s in range(9)]
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"loss_s": 2.0, "samples": [], "replicas": counts}))
    with pytest.raises(ConfigError, match="in which all replicas came back"):
        read_measured(path)
    counts += [{"at_s": 30.0, "regions": {"eu": 4}}]
    sample = {"due_s": 1.0, "took_s": 2.0, "is_stream": False, "error": None}
    path.write_text(json.dumps({"loss_s": 2.0, "samples": [sample], "replicas": counts}))
    assert read_measured(path) == Measured(num_exposed=1, num_failed=0, restore_s=28.0)


def test_every_variant_of_the_example_is_another_model() -> None:
    settings = model().model_copy(update={"what_if": {"w": {"load": {"peak": 0.9}}}})
    (variant,) = variants(settings).values()
    assert (variant.load.peak, variant.load.low) == (0.9, 0.5)
    assert not math.isclose(variant.load.peak, settings.load.peak)
