"""Clips over HTTP whose steps several processes compute, beside the same clips of one process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from sixfold.plugins.video.encoding import choose_format, encode
from sixfold.plugins.video.model import to_frames
from tests.plugins.video.conftest import decode
from tests.servers import DemoServer, ranks_of, serving

OPTIONS = {"default_width": 32, "default_height": 32, "default_frames": 9, "default_fps": 8, "default_steps": 6}
SPLITS: dict[str, dict[str, Any]] = {
    "context": {"parallel": {"context": 2, "cfg": 1, "step_timeout_s": 20}},
    "guidance": {"parallel": {"cfg": 2, "step_timeout_s": 20}},
}


@pytest.fixture(scope="module")
def server(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    root = tmp_path_factory.mktemp("parallel")
    models = {name: {"source": f"file:{folder('wan')}", "options": OPTIONS, **split} for name, split in SPLITS.items()}
    with serving(root, models) as server:
        yield server
    assert ranks_of(server) == []


def make(server: DemoServer, model: str, *, prompt: str, size: str = "32x32", steps: int = 6) -> Any:
    """Frames of a clip; raises with the job's error."""
    body = {"model": model, "prompt": prompt, "size": size, "num_inference_steps": steps}
    body |= {"seed": 3, "guidance_scale": 5.0}
    with httpx.Client(base_url=server.url, timeout=60.0) as client:
        job = client.post("/v1/videos", json=body).raise_for_status().json()
        until_s = time.monotonic() + 60.0
        while job["status"] in ("queued", "in_progress") and time.monotonic() < until_s:
            time.sleep(0.05)
            job = client.get(f"/v1/videos/{job['id']}").raise_for_status().json()
        assert job["status"] == "completed", job
        return decode(client.get(f"/v1/videos/{job['id']}/content").raise_for_status().content)[0]


def mean_difference(one: Any, other: Any) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


ENCODED_ROUNDING = 1.5
"""Levels of 255. The order of sums moves frames by some 1e-5, and the lossy encoder, in which that turns a choice, makes up
to 1.2 levels of such noise. How near the splits are to one process is a matter of `tests/core/parallel`, without an encoder.
"""

JOBS: list[dict[str, Any]] = [
    {"prompt": "a red ball moves right", "size": "32x32", "steps": 6},
    {"prompt": "a blue square", "size": "48x32", "steps": 4},
    {"prompt": "two yellow circles moving left and down", "size": "32x32", "steps": 8},
]


@pytest.fixture(scope="module")
def alone(stock: Callable[[str], Any]) -> list[Any]:
    """The frames of the jobs by the library's pipeline in one process, through the same encoder."""
    frames: list[Any] = []
    for job in JOBS:
        width, height = map(int, job["size"].split("x"))
        video = stock("wan")(
            prompt=job["prompt"],
            width=width,
            height=height,
            num_frames=9,
            num_inference_steps=job["steps"],
            guidance_scale=5.0,
            generator=torch.Generator("cpu").manual_seed(3),
            output_type="pt",
        ).frames[0]
        data = encode(iter(to_frames(video)), fps=8, form=choose_format("auto"), num_threads=1)
        frames.append(decode(data)[0])
    return frames


@pytest.mark.parametrize("split", SPLITS)
def test_clips_that_join_and_leave_over_ranks_equal_those_of_one_process(
    server: DemoServer, alone: list[Any], split: str
) -> None:
    with ThreadPoolExecutor(len(JOBS)) as pool:
        futures = [pool.submit(make, server, split, **job) for job in JOBS]
        together = [future.result() for future in futures]
    for expected, actual in zip(alone, together, strict=True):
        assert mean_difference(expected, actual) <= ENCODED_ROUNDING
    assert mean_difference(alone[0], alone[2]) > 1.5 * ENCODED_ROUNDING  # prompts matter, so equality says something


def test_a_rank_that_dies_in_a_step_ends_the_clip_and_the_replica_comes_back(
    server: DemoServer, alone: list[Any]
) -> None:
    before = sorted(ranks_of(server))
    assert len(before) == len(SPLITS)
    victim = before[0]  # models load one after another, in the order of the configuration
    with httpx.Client(base_url=server.url, timeout=60.0) as client:
        body = {"model": "context", "prompt": "a red ball", "num_inference_steps": 100}
        job = client.post("/v1/videos", json=body).raise_for_status().json()
        while not job["progress"]:
            job = client.get(f"/v1/videos/{job['id']}").raise_for_status().json()
        os.kill(victim, signal.SIGKILL)
        until_s = time.monotonic() + 120.0
        while job["status"] in ("queued", "in_progress") and time.monotonic() < until_s:
            time.sleep(0.1)
            job = client.get(f"/v1/videos/{job['id']}").raise_for_status().json()
        assert job["status"] == "completed"  # it was run again by the process that came up
    while victim in ranks_of(server) or len(ranks_of(server)) < len(SPLITS):
        assert time.monotonic() < until_s
        time.sleep(0.1)
    assert mean_difference(make_when_ready(server, "context", until_s), alone[0]) <= ENCODED_ROUNDING
    assert len(set(ranks_of(server)) & set(before)) == len(SPLITS) - 1


def make_when_ready(server: DemoServer, model: str, until_s: float) -> Any:
    """The first job again, as soon as the model takes requests."""
    while True:
        try:
            return make(server, model, **JOBS[0])
        except (AssertionError, httpx.HTTPStatusError):
            if time.monotonic() > until_s:
                raise
            time.sleep(0.2)
