"""What LoRA adapters cost a step of the native runtime: the same decodes without adapters, with one and with several.

    python bench/lora.py [--model FOLDER] [--rows 1,8,24] [--rank 16] [--adapters 8] [--repeats 30] [--dtype bfloat16]

All contenders take turns in one process, on contexts of 128 tokens. "off" is a model that was loaded without the option
``lora``, "ready" one that was loaded with it, in steps without adapters; both should be equal. Adapters are random, for all
linear layers. Each figure is the median time of a step in ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sixfold.core.config import load_config
from sixfold.core.family import LoadContext
from sixfold.core.plugins import load_plugins
from sixfold.core.registry import resolve_entry
from sixfold.core.source_ref import resolve_refs
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.loader import load
from sixfold.plugins.llm.lora_adapter import ModuleShape
from sixfold.plugins.llm.options import TransformersOptions

CONTEXT = 128
DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's folder; the demo's chat model by default")
    parser.add_argument("--rows", default="1,8,24", help="row counts, by commas")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    path = args.model or demo_model()
    off = loaded(path, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        shapes = loaded(path, args.dtype, lora={})._decoder.router.shapes
        folders = [write_adapter(Path(folder) / str(n), shapes, args.rank, n) for n in range(args.adapters)]
        lora = {"adapters": {f"a{n}": f"file:{f}" for n, f in enumerate(folders)}, "max_adapters": args.adapters}
        on = loaded(path, args.dtype, lora=lora)
    every = [on._adapters.find(f"a{n}") for n in range(args.adapters)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {path.name}, rank {args.rank}\n")
    print(f"| rows | off | ready | one adapter | {args.adapters} adapters |\n|---|---|---|---|---|")
    for num_rows in map(int, args.rows.split(",")):
        contenders = [
            (off._decoder, [None] * num_rows),
            (on._decoder, [None] * num_rows),
            (on._decoder, [every[0]] * num_rows),
            (on._decoder, [every[row % len(every)] for row in range(num_rows)]),
        ]
        times_ms = measure(contenders, args.repeats)
        print(f"| {num_rows} | " + " | ".join(f"{value:.1f}" for value in times_ms) + " |")


def demo_model() -> Path:
    settings = load_config(DEMO)
    return resolve_entry(settings.models["chat"], load_plugins(), settings.cache_dir, lambda *_progress: None).path


def measure(contenders: list[tuple[Any, list[Any]]], repeats: int) -> list[float]:
    rows = [[CachedTokens(range(CONTEXT), adapter=adapter) for adapter in adapters] for _, adapters in contenders]
    for (decoder, _), own in zip(contenders, rows, strict=True):
        for row in own:
            assert decoder.cache.reserve(row, CONTEXT) == CONTEXT
            row.num_computed = CONTEXT - 1
    times_ms: list[list[float]] = [[] for _ in contenders]
    with torch.inference_mode():
        for _ in range(repeats + 2):
            for (decoder, _), own, times in zip(contenders, rows, times_ms, strict=True):
                layout = decoder.lay_out(own, [1] * len(own))
                decoder.forward(layout)  # the set of adapters changes between contenders, not between steps
                began_s = time.perf_counter()
                decoder.forward(layout)
                times.append(1000 * (time.perf_counter() - began_s))
    for (decoder, _), own in zip(contenders, rows, strict=True):
        for row in own:
            decoder.cache.free(row)
    return [statistics.median(times[2:]) for times in times_ms]


def loaded(path: Path, dtype: str, **options: Any) -> Any:
    given = TransformersOptions.model_validate({"dtype": dtype, "kv_cache_bytes": 256 << 20} | options)
    local = resolve_refs(given, lambda ref: Path(ref.source.removeprefix("file:")))
    threads = torch.get_num_threads()
    return load(LoadContext(model_name="model", path=path, device="cpu", num_threads=threads, options=local))


def write_adapter(folder: Path, shapes: dict[str, ModuleShape], rank: int, seed: int) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(rank, shape.in_features, generator=generator) * 0.02
        tensors[f"{key}.lora_B.weight"] = torch.randn(shape.out_features, rank, generator=generator) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    return folder


if __name__ == "__main__":
    main()
