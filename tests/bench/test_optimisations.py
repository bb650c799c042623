"""The table of what each optimisation gave: which figures it takes, what it says of those that are missing or gave nothing."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

GPU = Path(__file__).resolve().parents[2] / "bench" / "gpu"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(GPU), *sys.path])
    return importlib.import_module("optimisations")


def image(**seconds: float) -> dict[str, Any]:
    """A file of `image.py --ablate`."""
    steps = [{"mode": mode.replace("_", "+"), "rows": 2, "s": value} for mode, value in seconds.items()]
    return {"arch": "sdxl", "ablate": {"steps_512": steps}}


def alone(key: str, off: float, on: float, unit: str = "ms") -> dict[str, Any]:
    """A file of `alone.py`."""
    row = {"key": key, "shape": "a shape", "off": off, "on": on, "unit": unit, "base": "", "note": ""}
    return {"optimisations": [row]}


def shown(bench: Any, capsys: pytest.CaptureFixture[str], folder: Path, **documents: Any) -> str:
    paths: list[Path] = []
    for name, document in documents.items():
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(document))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["optimisations.py", *map(str, paths)])
        bench.main()
    return capsys.readouterr().out


def test_each_mode_is_beside_the_one_without_it(bench: Any) -> None:
    document = image(eager=0.08, graphs=0.02, compiled=0.1, compiled_graphs=0.016)
    rows = list(bench.rows_of(document, "file"))
    assert [(row.key, row.note, round(row.times, 2)) for row in rows] == [
        ("image.graphs", "", 4.0),
        ("image.compiled", "", 0.8),
        ("image.compiled", "on top of graphs", 1.25),
    ]


def test_rates_are_better_when_they_are_greater(bench: Any) -> None:
    (row,) = bench.rows_of(alone("embedding.flights", 100.0, 150.0, "tokens/s"), "file")
    assert row.times == pytest.approx(1.5)


def test_ways_that_took_turns_stand_in_place_of_ways_one_after_the_other(
    bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old = image(eager=0.08, graphs=0.02, compiled=0.04)
    said = shown(bench, capsys, tmp_path, old=old, new=alone("image.graphs", 90.0, 30.0))
    assert "| **3.00** | new |" in said
    assert "| **4.00** | old |" not in said
    assert "| **2.00** | old |" in said  # of compiling there is nothing newer


def test_what_has_no_figure_is_said(bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = shown(bench, capsys, tmp_path, new=alone("image.graphs", 90.0, 30.0))
    missing = [line for line in said.splitlines() if line.startswith("- **No figure**")]
    assert len(missing) == len(bench.OPTIMISATIONS) - 1


def test_what_gave_nothing_and_is_in_the_code_is_said(
    bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gave = shown(bench, capsys, tmp_path, new=alone("image.streams", 10.0, 9.0))
    assert "**Gave nothing**" not in gave
    nothing = shown(bench, capsys, tmp_path, new=alone("image.streams", 10.0, 10.1))
    assert "**Gave nothing** (0.99 at best): image, decoding on a stream of its own" in nothing


def test_what_gave_something_and_is_not_in_the_code_is_said(
    bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = shown(bench, capsys, tmp_path, new=alone("video.graphs", 12.0, 10.0))
    assert "**Gave 1.20 and is not in the code**: video, denoiser's steps" in said


def test_a_trial_on_a_cpu_is_left_out(bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = shown(bench, capsys, tmp_path, trial=alone("image.graphs", 90.0, 30.0) | {"tiny": True})
    assert "trial is of a trial on a CPU and is left out" in said
    assert "**3.00**" not in said


def test_the_results_of_this_repository_are_read(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((GPU.parent / "results").glob("*-h[12]00*.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["optimisations.py", *map(str, files)])
        bench.main()
    said = capsys.readouterr().out
    assert "| 79.8 ms | 14 ms | **5.71** | 2026-11-28-h100-image |" in said or "h200-alone-image" in said


def test_ways_take_turns_and_each_is_first_once(bench: Any) -> None:
    timing: Any = importlib.import_module("alone_timing")
    visits: list[str] = []

    @contextlib.contextmanager
    def switch() -> Generator[None]:
        visits.append("on")
        yield
        visits.append("off")

    ways = {
        "plain": timing.Way(lambda: visits.append("plain")),
        "switched": timing.Way(lambda: visits.append("switched"), switch),
    }
    found = timing.interleave(ways, rounds=1)
    assert visits == [
        *("plain", "plain", "on", "switched", "switched", "off"),
        *("on", "switched", "switched", "off", "plain", "plain"),
    ]
    assert set(found) == {"plain", "switched"}


def test_a_way_that_fails_leaves_the_others_their_figures(bench: Any) -> None:
    timing: Any = importlib.import_module("alone_timing")

    def fail() -> None:
        raise RuntimeError("no such kernel")

    found = timing.interleave({"bad": timing.Way(fail), "good": timing.Way(lambda: None)}, rounds=2)
    assert set(found) == {"good"}
