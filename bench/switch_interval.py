"""How long a thread of a worker may keep the interpreter from the others: tokens a second of the native language runtime over
HTTP where the host is the limit (a tiny model, random weights), by the interval after which threads take turns.

    python bench/switch_interval.py                             # 16 and 64 streams of 32 + 48 tokens, about 4 minutes
    python bench/switch_interval.py --streams 64 --intervals-ms 5 0.1

A server for each interval; all are up at once, and one at a time is asked, another one first in each round. Python's own
interval is 5 ms, a worker's 0.1 (`core/runtime/worker.py`), which is overruled here from outside.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "gpu"))

import vllm_overhead as serving

_SITE = """
import os, sys
if "BENCH_SWITCH_INTERVAL_S" in os.environ:
    sys.setswitchinterval(float(os.environ["BENCH_SWITCH_INTERVAL_S"]))
    sys.setswitchinterval = lambda _seconds: None
"""


def start_servers(folder: Path, path: Path, intervals_ms: Sequence[float]) -> dict[float, serving.Server]:
    """One for each interval, by it."""
    (folder / "sitecustomize.py").write_text(_SITE)
    before = dict(os.environ)
    servers: dict[float, serving.Server] = {}
    try:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [before.get("PYTHONPATH")])])
        for interval in intervals_ms:
            os.environ["BENCH_SWITCH_INTERVAL_S"] = str(interval / 1e3)
            servers[interval] = serving.Server(path, "llm/transformers", serving.native_options(tiny=True))
    finally:
        os.environ.clear()
        os.environ.update(before)
    return servers


async def measure(
    servers: dict[float, serving.Server], clients: ProcessPoolExecutor, load: serving.Load, rounds: int
) -> dict[float, list[dict[str, float]]]:
    """Figures of every round, by interval; one more before them does not count."""
    names = list(servers)
    found: dict[float, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            made = await serving.run_http(clients, servers[name].port, load, 10 + number)
            if number:
                found[name].append(made.figures())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--intervals-ms", type=float, nargs="+", default=[5, 1, 0.5, 0.2, 0.1])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="switch-"))
    vocab = serving.make_model(folder / "llama", tiny=True)
    serving.save_random(folder / "llama", "float32")
    serving.NUM_CLIENTS = 1  # two cores are few
    clients = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    servers = start_servers(folder, folder / "llama", args.intervals_ms)
    every: dict[str, dict[str, list[dict[str, float]]]] = {}
    try:
        for streams in args.streams:
            found = serving.runner()(measure(servers, clients, serving.Load(streams, 32, 48, vocab), args.rounds))
            every[str(streams)] = {str(name): rounds for name, rounds in found.items()}
            base = found[args.intervals_ms[0]]
            print(
                f"\n| {streams} streams: interval, ms | tokens/s | x | TTFT p50, ms | TPOT p50, ms |\n|---|---|---|---|---|"
            )
            for name, rounds in found.items():
                middle = {figure: statistics.median(each[figure] for each in rounds) for figure in rounds[0]}
                ratio = statistics.median(own["tok_s"] / its["tok_s"] for own, its in zip(rounds, base, strict=True))
                print(
                    f"| {name:g} | {middle['tok_s']:,.0f} | {ratio:.3f} | {middle['ttft_p50_ms']:.1f} | "
                    f"{middle['tpot_p50_ms']:.2f} |",
                    flush=True,
                )
    finally:
        for server in servers.values():
            server.stop()
    if args.out:
        args.out.write_text(json.dumps(every, indent=1) + "\n")


if __name__ == "__main__":
    main()
