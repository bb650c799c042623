"""Prompts of the native language runtime on one GPU: attention and whole steps by three ways, and first calls of new lengths.

    python bench/gpu/native_prompts.py           # meant for 80 s on an H200
    python bench/gpu/native_prompts.py --tiny    # on a CPU, to try it; times of Triton's interpreter say nothing

Random weights, Llama-3.2-1B's shape, bfloat16. The ways, in turns:

- ``torch``: torch's attention, a call for each sequence, over contexts that are copied together (what runs without Triton);
- ``tiles``: the kernel of decision 0008 for decodes and prompts alike (what ran until 2026-11-29);
- ``chunks``: the kernel for all chunks of a step.

First, a process for each way, all at once, each with an empty cache of built kernels: seconds of prompts of lengths that it has
not met, alone and beside decodes, and how many kernels Triton built meanwhile. Then, by each way, a layer's attention with
what it stores, the whole step, both beside their floor, and how far the results differ. Last, tiles of ``chunks``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prompt_ways import WAYS, Steps, synchronize, way
from vllm_overhead import import_sixfold, load_native, make_model

CASES = {"16 x 512": (16, 512, 512), "1 x 8192 by 2048": (1, 8192, 2048), "64 x 128": (64, 128, 128)}
TINY_CASES = {"2 x 40": (2, 40, 40), "1 x 60 by 20": (1, 60, 20)}
LENGTHS = (8192, 9363, 10537, 11702, 12879, 14042, 15211, 16382)
TILES = (
    (64, 32, 4, 3),
    (64, 64, 4, 3),
    (128, 32, 8, 3),
    (128, 64, 4, 3),
    (128, 64, 8, 3),
    (128, 64, 8, 4),
    (128, 128, 8, 3),
)


def built_as_before() -> None:
    """Kernels that are built for how arrays happen to lie, too."""
    import triton

    from sixfold.plugins.llm import triton_kernels

    kernels: Any = triton_kernels
    for name in ("store_kernel", "attend_kernel", "merge_kernel"):
        setattr(kernels, name, triton.jit(getattr(kernels, name).fn))


def num_built() -> int:
    """Kernels that this process has built or read."""
    from sixfold.plugins.llm import triton_chunks, triton_kernels

    found = [value for module in (triton_chunks, triton_kernels) for value in vars(module).values()]
    caches = [getattr(value, "device_caches", {}) for value in found]
    return sum(len(cache[0]) for devices in caches for cache in devices.values())


def load(tiny: bool) -> Any:
    """The model, without graphs: prompts are in none."""
    from sixfold.plugins.llm import decoder

    if tiny:
        module: Any = decoder
        module.has_kernels = lambda _device: True
        module._WARM_UP_ROWS, module._WARM_UP_TILED_ROWS = (1,), ()
        module._WARM_UP_PROMPT_TOKENS = module._WARM_UP_TILED_TOKENS = 4
    folder = Path(tempfile.mkdtemp(prefix="prompts-")) / "llama"
    make_model(folder, tiny)
    return load_native(folder, tiny, cuda_graph_rows=0)


def compute(decoder: Any, prompt: int, chunk: int, streams: int) -> float:
    """Seconds of a prompt's chunks, with so many decodes in each step."""
    import torch

    from sixfold.plugins.llm.cached_tokens import CachedTokens

    row = CachedTokens([300] * prompt)
    others = [CachedTokens([300] * 32) for _ in range(streams)]
    for each in (row, *others):
        assert decoder.cache.reserve(each, len(each.token_ids)) == len(each.token_ids)
    for other in others:
        other.num_computed = 31
    synchronize()
    began_s = time.perf_counter()
    with torch.inference_mode():
        while row.num_computed < prompt:
            size = min(chunk, prompt - row.num_computed)
            decoder.forward(decoder.lay_out([*others, row], [1] * streams + [size]))
            row.num_computed += size
    synchronize()
    seconds = time.perf_counter() - began_s
    for each in (row, *others):
        decoder.cache.free(each)
    return seconds


def first_calls(name: str, tiny: bool) -> dict[str, Any]:
    """New lengths, one after the other, right after the start."""
    if name == "tiles":
        built_as_before()
    model = load(tiny)
    decoder = model._decoder
    with way(name, decoder):
        began_s = time.perf_counter()
        model.warm_up()
        synchronize()
        found: dict[str, Any] = {"warm_up_s": round(time.perf_counter() - began_s, 2), "prompts": []}
        for length, streams in zip((40, 57) if tiny else LENGTHS, itertools.cycle((0, 1, 5, 16))):
            before = num_built()
            first_s = compute(decoder, length, 20 if tiny else 8192, streams)
            built = num_built() - before
            again_s = compute(decoder, length, 20 if tiny else 8192, streams)
            entry = {"tokens": length, "streams": streams, "first_s": first_s, "again_s": again_s, "built": built}
            found["prompts"].append({key: round(value, 4) for key, value in entry.items()})
    return found


def all_first_calls(tiny: bool, site: Path | None) -> dict[str, Any]:
    """`first_calls` of all ways, each in a process of its own, side by side."""
    processes: dict[str, subprocess.Popen[str]] = {}
    for name in WAYS:
        command = [sys.executable, __file__, "--child", name, *(["--tiny"] if tiny else [])]
        command += ["--site", str(site)] if site else []
        own = {**os.environ, "TRITON_CACHE_DIR": tempfile.mkdtemp(prefix="triton-")}
        processes[name] = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = {}
    for name, process in processes.items():
        lines = process.communicate(timeout=180)[0].splitlines()
        found[name] = json.loads(lines[-1]) if process.returncode == 0 and lines else f"failed: {process.returncode}"
        print("FIRST", name, json.dumps(found[name]), flush=True)
    return found


def median_s(call: Callable[[], object], rounds: int, repeats: int = 1) -> float:
    """Of a call, the host's time included; the first round warms up."""
    times: list[float] = []
    for _ in range(rounds + 1):
        synchronize()
        began_s = time.perf_counter()
        for _repeat in range(repeats):
            call()
        synchronize()
        times.append((time.perf_counter() - began_s) / repeats)
    return statistics.median(times[1:])


def compare(decoder: Any, case: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """A case by all ways in turns."""
    import torch

    steps = Steps(decoder, case)
    inputs = steps.inputs()
    times: dict[str, dict[str, list[float]]] = {name: {"attention_s": [], "step_s": []} for name in WAYS}
    results: dict[str, tuple[Any, Any]] = {}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name in WAYS if number % 2 else reversed(WAYS):
                with way(name, decoder):
                    call = steps.attention(inputs)
                    attention_s = median_s(call, 1, 1 if rounds < 3 else 8)
                    attended = torch.cat(call(), dim=1)
                    step_s = median_s(steps.whole, 1)
                    if number == 0:
                        results[name] = attended.float(), steps.whole().float()
                    else:
                        times[name]["attention_s"].append(attention_s)
                        times[name]["step_s"].append(step_s)
    steps.free()
    found: dict[str, Any] = {"floor": steps.floor()}
    for name in WAYS:
        found[name] = {key: statistics.median(values) for key, values in times[name].items()}
        for key, other, mine in zip(("attention", "logits"), results["torch"], results[name], strict=True):
            found[name][f"{key}_difference"] = ((mine - other).abs().max() / other.abs().max()).item()
    return found


def sweep(decoder: Any, case: tuple[int, int, int]) -> dict[str, float]:
    """Seconds of a layer's attention of a case by other tiles."""
    import torch

    from sixfold.plugins.llm import chunk_kernels

    kernels: Any = chunk_kernels
    kept, found = kernels.chunk_tile, dict[str, float]()
    with torch.inference_mode():
        for shape in TILES:
            kernels.chunk_tile = lambda _dim, _dtype, shape=shape: chunk_kernels.ChunkTile(*shape)
            steps = Steps(decoder, case)
            try:
                found[" ".join(map(str, shape))] = median_s(steps.attention(steps.inputs()), 5, 8)
            except Exception as error:  # too much shared memory for this card
                print(shape, str(error)[:100], flush=True)
            steps.free()
    kernels.chunk_tile = kept
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--part", nargs="+", default=["first", "steps", "sweep"], choices=["first", "steps", "sweep"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--site", type=Path)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "native_prompts.json")
    args = parser.parse_args()
    if args.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
    import_sixfold(args.site)
    if args.child:
        print(json.dumps(first_calls(args.child, args.tiny)), flush=True)
        return
    result: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        result[name] = value
        if not args.tiny:
            args.out.write_text(json.dumps(result, indent=1) + "\n")

    if "first" in args.part:
        keep("first", all_first_calls(args.tiny, args.site))
    decoder = load(args.tiny)._decoder
    cases = TINY_CASES if args.tiny else CASES
    if "steps" in args.part:
        for name, case in cases.items():
            keep(name, compare(decoder, case, 1 if args.tiny else args.rounds))
            print("STEPS", name, json.dumps(result[name]), flush=True)
    if "sweep" in args.part and not args.tiny:
        for name in ("16 x 512", "1 x 8192 by 2048"):
            keep(f"tiles, {name}", sweep(decoder, CASES[name]))
            print("TILES", name, json.dumps(result[f"tiles, {name}"]), flush=True)


if __name__ == "__main__":
    main()
