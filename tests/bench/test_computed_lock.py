"""The lock's latencies by its seconds: what a request waits for and takes, first come, first served."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_each_waits_for_those_before_it_and_takes_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    serving: Any = importlib.import_module("image_serving")
    jobs = [
        serving.Job(arrival_s=arrival_s, num_steps=steps, guidance=1.0, size=64, seed=0)
        for arrival_s, steps in ((0.0, 50), (1.0, 4), (9.0, 4))
    ]
    report = serving.compute_locked(jobs, {50: 5.0, 4: 0.5})
    # 5 s; then 4 s of waiting and half a second; then nobody is there.
    assert report["mean_s"] == pytest.approx((5.0 + 4.5 + 0.5) / 3)
    assert report["p50_s"] == pytest.approx(4.5)
    assert report["images_per_s"] == pytest.approx(3 / 9.5)
