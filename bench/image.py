"""Pictures on a CPU: Sixfold's engine beside the stock pipeline behind a lock and static batches of it, in one run.

    python bench/image.py                       # a Stable Diffusion pipeline with tiny random weights
    python bench/image.py --model FOLDER        # any diffusers text-to-image folder with text encoders

Requests arrive at random (Poisson) at shares of what the lock can serve, which is measured first, and mix 4 to 20 steps and
three guidance scales. Every round serves the same requests in each way, another one first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import torch
from image_serving import (
    Job,
    Report,
    Subject,
    max_difference,
    poisson_jobs,
    serve_engine,
    serve_locked,
    serve_static,
    table,
)

STEPS = (4, 8, 12, 20)
GUIDANCES = (3.0, 5.0, 7.5)
WORDS = "a small red circle above a large blue square on a green background".split()


def load(model: Path | None) -> tuple[Subject, int]:
    """The subject and its size."""
    if model is None:
        from tests.tiny_image_folder import stable_diffusion

        pipeline: Any = stable_diffusion()
        size = 32
    else:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(model)
        size = int(getattr(pipeline, "default_sample_size", 16)) * int(pipeline.vae_scale_factor)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)

    def prompt(seeds: Any) -> dict[str, Any]:
        return {"prompt": [" ".join(WORDS[seed % 7 :]) for seed in seeds]}

    return Subject(pipeline=pipeline, prompt=prompt, device=torch.device("cpu")), size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--count", type=int, default=40, help="requests of a run")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 1.2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    subject, size = load(args.model)
    probe = [Job(arrival_s=0.0, num_steps=steps, guidance=5.0, size=size, seed=steps) for steps in STEPS]
    for job in probe:
        subject.draw([job])
    began_s = time.perf_counter()
    for job in probe * 3:
        subject.draw([job])
    capacity = 3 * len(probe) / (time.perf_counter() - began_s)
    print(f"{type(subject.pipeline).__name__} {size}x{size}, {os.cpu_count()} cores, torch {torch.__version__}")
    difference = max_difference(subject, probe, max_step_units=4096)
    print(f"the lock serves {capacity:.2f} images/s; engine against stock alone: {difference:.1e}")
    found: dict[str, Any] = {"capacity_images_per_s": capacity, "size": size, "count": args.count, "loads": {}}
    for load_share in args.loads:
        jobs = poisson_jobs(args.count, capacity * load_share, steps=STEPS, guidances=GUIDANCES, sizes=(size,))
        ways: dict[str, Any] = {
            "stock, locked": lambda jobs=jobs: serve_locked(subject, jobs),
            "stock, static batches of 8": lambda jobs=jobs: serve_static(subject, jobs, max_batch=8, wait_s=0.1),
            "sixfold": lambda jobs=jobs: serve_engine(subject, jobs, max_step_units=4096),
        }
        rounds: dict[str, list[Report]] = {name: [] for name in ways}
        order = list(ways)
        for _ in range(args.rounds):
            for name in order:
                rounds[name].append(ways[name]())
            order = [*order[1:], order[0]]
        rows = {
            name: {key: statistics.median(r[key] for r in each) for key in each[0]} for name, each in rounds.items()
        }
        print(
            f"\nload {load_share} of the lock's capacity, {args.count} requests, median of {args.rounds} rounds\n{table(rows)}"
        )
        found["loads"][str(load_share)] = rounds
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
