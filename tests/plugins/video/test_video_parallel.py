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
import yaml

from tests.plugins.video.conftest import decode
from tests.servers import DemoServer, start_server, stop_server

OPTIONS = {"default_width": 32, "default_height": 32, "default_frames": 9, "default_fps": 8, "default_steps": 6}
SPLITS: dict[str, dict[str, Any]] = {
    "alone": {},
    "context": {"parallel": {"context": 2, "cfg": 1, "step_timeout_s": 20}},
    "guidance": {"parallel": {"cfg": 2, "step_timeout_s": 20}},
}


@pytest.fixture(scope="module")
def server(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    root = tmp_path_factory.mktemp("parallel")
    models = {
        name: {"source": f"file:{folder('wan')}", "options": OPTIONS, **split} for name, split in SPLITS.items()
    }
    config = root / "video.yaml"
    config.write_text(yaml.safe_dump({"models": models, "server": {"port": 0, "data_dir": str(root / "data")}}))
    server = start_server(config)
    try:
        yield server
    finally:
        assert stop_server(server) == 0
        assert ranks_of(server) == []


def make(server: DemoServer, model: str, *, prompt: str, size: str = "32x32", steps: int = 6) -> Any:
    """Frames of a clip; raises with the job's error."""
    body = {"model": model, "prompt": prompt, "size": size, "num_inference_steps": steps, "seed": 3}
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


def ranks_of(server: DemoServer) -> list[int]:
    """Process ids of the ranks that this server's workers have started."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                grandparent = int(Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError):
                continue
            if b"sixfold.core.runtime.rank" in command and grandparent == server.process.pid:
                found.append(int(entry.name))
    return found


JOBS = [
    {"prompt": "a red ball moves right", "size": "32x32", "steps": 6},
    {"prompt": "a blue square", "size": "48x32", "steps": 4},
    {"prompt": "two yellow circles moving left and down", "size": "32x32", "steps": 8},
]


@pytest.mark.parametrize("split", ["context", "guidance"])
def test_clips_that_join_and_leave_over_ranks_equal_those_of_one_process(server: DemoServer, split: str) -> None:
    alone = [make(server, "alone", **job) for job in JOBS]
    with ThreadPoolExecutor(len(JOBS)) as pool:
        together = list(pool.map(lambda job: make(server, split, **job), JOBS))
    for expected, actual in zip(alone, together, strict=True):
        # Frames went through a lossy encoder, in which rounding may turn a choice: single values may differ.
        assert mean_difference(expected, actual) <= 0.2
    assert mean_difference(alone[0], alone[2]) > 5.0  # prompts matter, so equality says something


def test_a_rank_that_dies_in_a_step_ends_the_clip_and_the_replica_comes_back(server: DemoServer) -> None:
    before = ranks_of(server)
    assert len(before) == 2
    with ThreadPoolExecutor(1) as pool:
        clip = pool.submit(make, server, "context", prompt="a red ball", steps=100)
        time.sleep(0.5)
        for rank in before:
            os.kill(rank, signal.SIGKILL)
        clip.exception(timeout=60.0)  # it may have failed or been run again; it did not hang
    deadline_s = time.monotonic() + 90.0
    while time.monotonic() < deadline_s:
        state = httpx.get(f"{server.url}/v1/models/context", timeout=10.0).json()
        if len(ranks_of(server)) == 2 and not set(ranks_of(server)) & set(before) and state.get("state") == "ready":
            break
        time.sleep(0.2)
    assert make(server, "context", **JOBS[0]).shape == make(server, "alone", **JOBS[0]).shape
