"""Speech recognition beside its peers, in one run, over HTTP. bench/README.md tells how to read it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import asr_suite
import report
import uvloop
from quick import only, rotated, running, sample
from report import Sample
from servers import OtherLoad
from targets import BENCH, pull_demo_models, work_folder

SEQUENTIAL = "faster-whisper, one by one"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds; tables show medians (default 2)")
    parser.add_argument("--num-calls", type=int, default=10, help="requests of one measurement (default 10)")
    parser.add_argument("--batch-size", type=int, default=8, help="of BatchedInferencePipeline (default 8, its own)")
    parser.add_argument("--model", type=Path, help="model folder instead of the demo model")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    work_folder()
    model = args.model or pull_demo_models(BENCH.parent / "examples" / "demo.yaml")["hear"]
    facts: dict[str, object] = {**report.machine(), "faster-whisper": version("faster-whisper"), "model": model.name}
    started_s = time.monotonic()
    samples = uvloop.run(run(args, model))
    facts["seconds"] = round(time.monotonic() - started_s)
    lines = ["# Speech recognition beside its peers", "", *(f"- {name}: {value}" for name, value in facts.items())]
    base: Callable[[Sample], bool] = lambda one: one.row == SEQUENTIAL  # noqa: E731
    ratios = {"throughput / one by one": ("audio_s_per_s", base), "clips p50 / one by one": ("clip_p50_ms", base)}
    for workload in asr_suite.WORKLOADS:
        mine = [one for one in samples if one.workload == workload.name]
        lines += ["", f"## {workload.name}", "", *report.table(mine, report.SPEECH_COLUMNS, ratios)]
    print("\n".join(lines))
    print(f"\nwritten: {report.write(BENCH / 'results', facts, samples, lines, name='asr')}")


async def run(args: argparse.Namespace, model: Path) -> list[Sample]:
    rows = asr_suite.rows(model, batch_size=args.batch_size)
    clips, long = asr_suite.recordings(BENCH.parent / "tests" / "data" / "librivox")
    samples: list[Sample] = []
    with running(rows) as servers:
        for row in rows:
            with only(servers, row) as server:
                await asr_suite.measure(server, row, asr_suite.CLIPS, clips, long, num_calls=2)
        for round_index in range(args.rounds):
            for workload in asr_suite.WORKLOADS:
                for row in rotated(rows, round_index):
                    with only(servers, row) as server:
                        other = OtherLoad(server)
                        values = await asr_suite.measure(server, row, workload, clips, long, num_calls=args.num_calls)
                        values["other_load"] = other.share()
                    samples.append(sample("asr", workload.name, row, round_index, values))
    return samples


if __name__ == "__main__":
    main()
