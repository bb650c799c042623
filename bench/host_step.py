"""What a step of the native language runtime costs the host: processor time by part, with a device that costs nothing.

    python bench/host_step.py                    # 256 greedy streams of 512 + 128 tokens
    python bench/host_step.py --rows 64 --ahead  # fewer; one step ahead, as on a GPU
    python bench/host_step.py --ahead --whole    # what it takes when nobody measures its parts
    python bench/host_step.py --watch            # while somebody looks at the live view

The manager, scheduler, step loop, layout, detokenizer, outbox and a consumer a stream are the real ones; the forward pass
gives logits made before. Processor time of the device thread is counted, so a busy machine changes little. The tokenizer
is the one that `bench/gpu/vllm_overhead.py` makes, unless ``--tokenizer FOLDER`` names a model's.

A part's time is without that of the parts inside it. ``device`` is what a GPU would do: it is in no sum.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "gpu"))

from vllm_overhead import Load, load_native, make_model, run_local

# Columns of the made logits: enough for answers of ordinary words, few enough that the likeliest is soon found.
_WIDTH = 2048


class PartTimes:
    """Processor time of one thread by part, each without what is measured inside it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._inner_s = [0.0]

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Replaces a function of a class, module or object by one that is measured."""
        inner: Callable[..., Any] = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            began_s = time.thread_time()
            self._inner_s.append(0.0)
            try:
                return inner(*args, **kwargs)
            finally:
                taken_s = time.thread_time() - began_s
                self.seconds[part] += taken_s - self._inner_s.pop()
                self.calls[part] += 1
                self._inner_s[-1] += taken_s

        setattr(owner, name, measured)


def watch_whole(parts: PartTimes, model: Any, loop: Any, manager: Any) -> None:
    """The loop alone: measuring hundreds of small calls a step takes as long as some of them."""
    parts.watch(manager, "_publish", "figures")
    parts.watch(loop, "run_once", "loop")
    parts.watch(model._decoder, "forward", "device")


def watch_all(parts: PartTimes, model: Any, loop: Any, manager: Any) -> None:
    """The parts of a step, from the outermost in."""
    from sixfold.core.batching.step_watch import StepWatch
    from sixfold.plugins.llm import detokenizer, step_launcher

    watch_whole(parts, model, loop, manager)
    parts.watch(loop._scheduler, "select", "select")
    parts.watch(loop._outbox, "emit", "hand out")
    parts.watch(loop, "_apply", "apply outcomes")
    parts.watch(model, "begin", "begin, rest")
    parts.watch(model, "_settle", "settle, rest")
    parts.watch(model._settler.intake, "take", "take tokens")
    parts.watch(model, "cost", "costs")
    parts.watch(model, "reserve", "reserve")
    parts.watch(detokenizer.Detokenizer, "push", "detokenize")
    parts.watch(model._decoder, "lay_out", "lay out")
    parts.watch(step_launcher, "begin_sample", "sample")
    parts.watch(StepWatch, "stepped", "tell watchers")


def free_forward(model: Any, rows: int) -> None:
    """Makes the model's forward pass cost nothing; answers differ by row and step."""
    import torch

    generator = torch.Generator().manual_seed(0)
    made = torch.randn((rows * 2, _WIDTH), generator=generator)
    made[:, :300] = -10.0  # no lone bytes
    turn = 0

    def forward(layout: Any, _chosen: Any = None) -> Any:
        nonlocal turn
        turn = (turn + 7) % rows
        count = len(layout.logit_rows)
        return made[turn : turn + count] if count else None

    model._decoder.forward = forward


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all streams once to warm up and once measured."""
    from sixfold.core.batching.manager import Limits
    from sixfold.core.runtime.local_replica import LocalReplica

    folder = Path(tempfile.mkdtemp(prefix="host-"))
    make_model(folder, tiny=True, vocab=128256)
    if args.tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(args.tokenizer / name, folder / name)
    # Without guesses, which few rows have: the made logits know nothing of them.
    options: dict[str, Any] = {"steps_ahead": args.ahead, "speculation": {"method": "off"}}
    model = load_native(folder, tiny=True, cache_bytes=512 << 20, **options)
    load = Load(args.rows, args.prompt, args.output, _WIDTH)
    free_forward(model, args.rows)
    replica = LocalReplica(model, limits=Limits(max_queue_units=1 << 30, max_running_sequences=args.rows))
    await run_local(replica, Load(args.rows, 8, 8, _WIDTH), "warm", 0)
    if args.watch:
        replica._manager.watch(True)
    parts = PartTimes()
    loop = replica._manager._loop
    (watch_whole if args.whole else watch_all)(parts, model, loop, replica._manager)
    steps = loop.counters["steps"]
    began_s = time.process_time()
    made = await run_local(replica, load, "measured", 1)
    process_s = time.process_time() - began_s
    steps = loop.counters["steps"] - steps
    await replica.close()
    tokens = args.rows * args.output
    device_s = parts.seconds.pop("device", 0.0)
    thread_s = sum(parts.seconds.values())
    return {
        "rows": args.rows,
        "steps": steps,
        "tokens": sum(stream.tokens for stream in made.streams),
        "device_thread_us_a_token": 1e6 * thread_s / tokens,
        "process_us_a_token": 1e6 * (process_s - device_s) / tokens,
        "parts_us_a_token": {name: 1e6 * s / tokens for name, s in parts.seconds.most_common()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument(
        "--ahead", action="store_true", help="start a step before the last one's answers are handed out"
    )
    parser.add_argument(
        "--whole", action="store_true", help="without its parts, whose measuring is a part of the figures"
    )
    parser.add_argument("--watch", action="store_true", help="tell what each step does, as for the live view")
    parser.add_argument("--tokenizer", type=Path, help="folder of a model whose tokenizer is used")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = asyncio.run(measure(args))
    print(f"{found['rows']} streams, {found['steps']} steps, {found['tokens']} tokens")
    for name, us in found["parts_us_a_token"].items():
        print(f"{name:16} {us:7.2f} us a token {us * found['rows'] / 1e3:7.2f} ms a step of all")
    for name in ("device_thread", "process"):
        us = found[f"{name}_us_a_token"]
        print(f"{name:16} {us:7.2f} us a token {us * found['rows'] / 1e3:7.2f} ms a step of all")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
