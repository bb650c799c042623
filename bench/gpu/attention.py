"""Which tile of `attend_spans` is fastest on this card, beside torch's own flash kernel; random numbers, bfloat16.

python bench/gpu/attention.py --out FILE     # half a minute; the winners go into core/runtime/gpu_layers.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vllm_overhead import import_sixfold

TOKENS, LENGTH = 4096, 512
HEADS = {(128, True): (16, 8), (64, False): (16, 16), (32, False): (12, 12)}
"""Query and kv heads of Qwen3-Embedding-0.6B, bge-large and MiniLM by their head dim."""

SHAPES = (
    (64, 32, 4, 2),
    (64, 32, 4, 3),
    (64, 32, 4, 4),
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (64, 64, 4, 4),
    (64, 128, 4, 2),
    (128, 32, 8, 3),
    (128, 64, 4, 3),
    (128, 64, 8, 2),
    (128, 64, 8, 3),
    (128, 128, 8, 2),
)
"""Rows, keys, warps and stages of the tiles to try."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path)
    parser.add_argument("--dims", type=int, nargs="+", help="some of the head dims")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    import_sixfold(args.site)
    import torch
    from triton.testing import do_bench

    from sixfold.core.runtime import gpu_layers

    starts = torch.arange(TOKENS, device="cuda") // LENGTH * LENGTH
    spans = gpu_layers.Spans(starts, starts + LENGTH)
    bounds = torch.arange(0, TOKENS + 1, LENGTH, device="cuda", dtype=torch.int32)
    found: dict[str, Any] = {}
    for (dim, causal), (heads, kv_heads) in HEADS.items():
        if args.dims and dim not in args.dims:
            continue
        qkv = torch.randn(TOKENS, heads + 2 * kv_heads, dim, device="cuda", dtype=torch.bfloat16)
        query, key, value = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)

        def ours(q: Any = query, k: Any = key, v: Any = value, causal: bool = causal) -> object:
            return gpu_layers.attend_spans(q, k, v, spans, scaling=0.1, causal=causal)

        def flash(q: Any = query, k: Any = key, v: Any = value, causal: bool = causal) -> Any:
            forward: Any = torch.ops.aten._flash_attention_forward
            return forward(q, k, v, bounds, bounds, LENGTH, LENGTH, 0.0, causal, False, scale=0.1)[0]

        table = {"flash": round(1e3 * do_bench(flash, return_mode="median"), 1)}
        packed = [(*tile, 2) for tile in SHAPES] if heads > kv_heads else []
        for tile in (*((*tile, 1) for tile in SHAPES), *packed):
            gpu_layers.TILES[dim, causal] = gpu_layers.Tile(*tile)
            try:
                table[" ".join(map(str, tile))] = round(1e3 * do_bench(ours, return_mode="median"), 1)
            except Exception as error:  # too much shared memory for this card
                print(tile, str(error)[:100], flush=True)
        best = min((name for name in table if name != "flash"), key=lambda name: table[name])
        gpu_layers.TILES[dim, causal] = gpu_layers.Tile(*map(int, best.split()))
        difference = (ours().float() - flash().float()).abs().max().item()  # type: ignore[attr-defined]
        found[f"{dim} {causal}"] = {"us": table, "best": best, "difference": difference}
        print(dim, causal, json.dumps(found[f"{dim} {causal}"]), flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")  # a run that is cut off keeps what it has


if __name__ == "__main__":
    main()
