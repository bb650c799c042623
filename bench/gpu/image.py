"""Pictures on one GPU at real sizes with random weights and random prompt embeddings (no text encoder): SDXL and Flux-dev.

    python bench/gpu/image.py                              # SDXL: a step by rows and optimisation, and serving at 512 pixels
    python bench/gpu/image.py --ablate                     # the former alone; --part serve for the latter
    python bench/gpu/image.py --part serve --kinds compiled            # lock and engine, both compiled
    python bench/gpu/image.py --part serve --size 1024 --loads 0.8 1.1
    python bench/gpu/image.py --part equal                 # engine against the stock pipeline, bfloat16 and float32
    python bench/gpu/image.py --arch flux --ablate --size 1024         # model FLOPs utilisation, and what fp8 gives
    python bench/gpu/image.py --tiny                       # everything on a CPU in a minute, to try it

Each of these takes under nine minutes on an H100. A machine without Sixfold needs these wheels beside torch and transformers:
diffusers==0.42.1, msgspec, pluggy, pydantic, pydantic_core, annotated-types, typing-inspection (``--site FOLDER`` puts the
folder where they were installed in front of the path).
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import inspect
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def import_sixfold(site: Path | None) -> None:
    """Makes ``sixfold`` importable from the source tree where it is not installed."""
    if site is not None:
        sys.path.insert(0, str(site))
    sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "bench/gpu")]
    if importlib.util.find_spec("sixfold") is None:
        package = Path(tempfile.mkdtemp()) / "sixfold"
        package.mkdir()
        for name in ("core", "plugins"):
            (package / name).symlink_to(ROOT / name)
        sys.path.insert(0, str(package.parent))


def capture_call(subject: Any, size: int) -> tuple[Any, dict[str, Any]]:
    """The denoiser and the arguments of its first call for one picture, one row of it."""
    from image_serving import Job

    denoiser = getattr(subject.pipeline, "unet", None) or subject.pipeline.transformer
    seen: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def stop(_module: Any, args: Any, kwargs: Any) -> None:
        names = list(inspect.signature(denoiser.forward).parameters)
        seen.update(dict(zip(names, args, strict=False)), **kwargs)
        raise Stop

    handle = denoiser.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        subject.draw([Job(arrival_s=0.0, num_steps=4, guidance=3.0, size=size, seed=1)])
    except Stop:
        pass
    handle.remove()
    return denoiser, seen


def repeat_rows(value: Any, rows: int, from_rows: int, name: str = "") -> Any:
    """The first row of every argument with rows, ``rows`` times."""
    import torch

    if isinstance(value, dict):
        return {key: repeat_rows(item, rows, from_rows, key) for key, item in value.items()}
    if (
        torch.is_tensor(value) and value.ndim >= 1 and value.shape[0] == from_rows and not name.endswith("_ids")
    ) or name == "time_ids":
        return value[:1].expand(rows, *value.shape[1:]).contiguous()
    return value


def ablate(subject: Any, sizes: Sequence[int], tiny: bool, modes: Sequence[str], save: Callable[[Any], None]) -> None:
    """What each optimisation gives a forward and a decode, alone."""
    import torch
    from image_steps import measure_decode, measure_steps, steps_table

    found: dict[str, Any] = {}
    for size in sizes:
        denoiser, arguments = capture_call(subject, size)
        from_rows = next(iter(arguments.values())).shape[0]
        # 4,096 positions of a transformer or so fill the card: more rows say nothing new.
        rows = (1, 2) if tiny else ((1, 2, 4, 8, 16) if size <= 512 else (1, 2, 4, 8))
        if not tiny and len(arguments) and "img_ids" in arguments:
            rows = (1, 2, 4) if size <= 512 else (1, 2)

        def given(count: int, arguments: Any = arguments, from_rows: int = from_rows) -> dict[str, Any]:
            return {name: repeat_rows(value, count, from_rows, name) for name, value in arguments.items()}

        def report(steps: list[dict[str, Any]], size: int = size) -> None:
            found[f"steps_{size}"] = steps
            save(found)

        chosen = [mode for mode in modes if size == sizes[-1] or not mode.startswith("fp8")]
        found[f"steps_{size}"] = measure_steps(
            denoiser, given, rows=rows, modes=chosen, repeats=2 if tiny else 8, report=report
        )
        print(f"\n{size}px, one forward\n{steps_table(found[f'steps_{size}'])}\n", flush=True)
        save(found)
    vae, side = subject.pipeline.vae, sizes[0] // 8

    def latents(count: int) -> Any:
        return torch.randn(count, vae.config.latent_channels, side, side, device=subject.device, dtype=vae.dtype)

    found["decode"] = measure_decode(vae, latents, (1, 2) if tiny else (1, 4), 2 if tiny else 5)
    for row in found["decode"]:
        print(f"decode {sizes[0]}px, {row['mode']}, {row['rows']}: {row['s_a_picture'] * 1e3:.1f} ms a picture")
    save(found)


def graphs_on(subject: Any) -> Any:
    """Recorded forwards on a GPU; None on a CPU."""
    from sixfold.core.rendezvous.graphs import RowGraphs
    from sixfold.core.runtime.cuda_graphs import capture_cuda_graph

    if subject.device.type != "cuda":
        return None
    return RowGraphs(capture_cuda_graph(subject.device), subject.device, (1, 2, 3, 4, 6, 8, 12, 16))


def floor_images_per_s(subject: Any, size: int, steps: Sequence[int]) -> float:
    """What the card would draw if it did nothing but the denoiser's products at its peak."""
    from image_steps import PEAK_FLOPS, flops_of

    denoiser, arguments = capture_call(subject, size)
    return PEAK_FLOPS * len(steps) / (flops_of(lambda: denoiser(**arguments)) * sum(steps))


def serve(
    subject: Any,
    *,
    size: int,
    steps: Sequence[int],
    count: int,
    loads: Sequence[float],
    max_step_units: int,
    compiled: bool,
    static: bool,
    computed_below: float,
    save: Callable[[Any], None],
) -> None:
    """Lock, static batches and the engine at shares of what the lock serves, all compiled or none."""
    import torch
    from image_serving import Job, compute_locked, poisson_jobs, serve_engine, serve_locked, serve_static, table
    from image_steps import PEAK_FLOPS, set_compiled

    denoiser = getattr(subject.pipeline, "unet", None) or subject.pipeline.transformer
    set_compiled(denoiser, compiled)
    kind = "compiled" if compiled else "eager"
    probe = [Job(arrival_s=0.0, num_steps=each, guidance=5.0, size=size, seed=each) for each in steps]
    began_s = time.perf_counter()
    subject.draw(probe[:1])
    print(f"the first picture took {time.perf_counter() - began_s:.0f} s", flush=True)
    seconds: dict[int, float] = {}
    for job in probe:
        began_s = time.perf_counter()
        subject.draw([job])
        seconds[job.num_steps] = time.perf_counter() - began_s
    capacity = len(probe) / sum(seconds.values())
    print(f"{size}px, {kind}: the lock serves {capacity:.3f} images/s", flush=True)
    floor = floor_images_per_s(subject, size, steps)
    print(f"at {PEAK_FLOPS / 1e12:.0f} TFLOP/s the card would draw {floor:.2f} images/s", flush=True)
    found: dict[str, Any] = {
        "size": size,
        "capacity_images_per_s": capacity,
        "floor_images_per_s": floor,
        "lock_s_by_steps": seconds,
    }
    graphs = graphs_on(subject)
    for share in loads:
        jobs = poisson_jobs(count, capacity * share, steps=steps, guidances=(3.0, 5.0, 7.5), sizes=(size,))
        rows: dict[str, Any] = {}
        if share >= computed_below:
            rows[f"stock, locked, {kind}"] = serve_locked(subject, jobs)
        if computed_below:
            rows[f"stock, locked, {kind}, computed"] = compute_locked(jobs, seconds)
        if static:
            rows[f"stock, static batches of 8, {kind}"] = serve_static(subject, jobs, max_batch=8, wait_s=0.2)
        if graphs is None or static:
            rows[f"sixfold, {kind}"] = serve_engine(subject, jobs, max_step_units=max_step_units)
        if graphs is not None:
            rows[f"sixfold, {kind}, graphs"] = serve_engine(subject, jobs, max_step_units=max_step_units, graphs=graphs)
        print(f"\nload {share}, {count} requests\n{table(rows)}\n", flush=True)
        if graphs is not None:
            held = torch.cuda.memory_reserved() / 2**30
            print(f"{graphs.num_recorded} graphs, {graphs.num_replays} replays, {held:.1f} GiB reserved", flush=True)
        found[str(share)] = rows
        save(found)
    set_compiled(denoiser, False)


def equal(arch: str, *, tiny: bool, device: str, size: int, steps: int) -> dict[str, Any]:
    """The largest pixel difference of the engine to the stock pipeline alone."""
    import torch
    from image_serving import Job, max_difference
    from image_subjects import build

    found: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float32):
        if dtype is torch.float32 and arch == "flux" and not tiny:
            continue  # 48 GB of weights leave no room
        subject = build(arch, tiny=tiny, device=device, dtype=dtype)
        jobs = [Job(arrival_s=0.0, num_steps=steps + i % 3, guidance=3.0 + i, size=size, seed=i) for i in range(4)]
        name = str(dtype).removeprefix("torch.")
        for way, graphs in {"": None, ", graphs": graphs_on(subject)}.items():
            if not way or graphs is not None:
                found[name + way] = max_difference(subject, jobs, max_step_units=1 << 20, graphs=graphs)
                print(f"{name}{way}: largest difference of a pixel {found[name + way]:.2e} (of 1)", flush=True)
        del subject
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=("sdxl", "flux"), default="sdxl")
    parser.add_argument("--part", choices=("equal", "ablate", "serve"), action="append")
    parser.add_argument("--ablate", action="store_const", const=["ablate"], dest="part")
    parser.add_argument("--size", type=int, action="append", help="default 512 and 1024; serve: 512")
    parser.add_argument("--modes", nargs="+", help="ablate: some of its modes")
    parser.add_argument("--kinds", nargs="+", choices=("eager", "compiled"), default=["eager"], help="serve")
    parser.add_argument(
        "--static", action="store_true", help="serve: also static batches, and the engine without graphs"
    )
    parser.add_argument("--count", type=int, help="serve: requests of a run")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.8, 1.1, 2.0])
    parser.add_argument(
        "--computed-below",
        type=float,
        default=0.0,
        help="serve: at loads below this the lock is not run: its latencies follow from its seconds by steps, first come, "
        "first served; they stand beside the run at higher loads, too",
    )
    parser.add_argument("--max-step-units", type=int, default=65_536, help="serve: latent positions of a step")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--site", type=Path)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "image.json")
    args = parser.parse_args()
    import_sixfold(args.site)
    import diffusers
    import torch
    from image_subjects import build

    torch.set_float32_matmul_precision("highest")
    device = "cpu" if args.tiny else "cuda"
    dtype = torch.float32 if args.tiny else torch.bfloat16
    card = "cpu" if args.tiny else torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    print(f"{args.arch}, random weights, no text encoder, {dtype}, {card}, {versions}")
    sizes = args.size or ([64] if args.tiny else [512, 1024])
    parts = args.part or (["equal", "ablate", "serve"] if args.tiny else ["ablate", "serve"])
    result: dict[str, Any] = {"arch": args.arch, "card": card, "dtype": str(dtype), "torch": torch.__version__}

    def save(name: str, found: Any) -> None:
        result[name] = found
        if not args.tiny:  # after every part: a run that is cut off keeps what it has
            args.out.write_text(json.dumps(result, indent=1))

    if "equal" in parts:
        save("equal", equal(args.arch, tiny=args.tiny, device=device, size=sizes[0], steps=3))
    if "serve" in parts:
        subject = build(args.arch, tiny=args.tiny, device=device, dtype=dtype)
        count = args.count or (6 if args.tiny else 10)
        steps = (2, 3) if args.tiny else ((4, 12, 20, 50) if args.arch == "sdxl" else (4, 10, 20, 28))
        for size, kind in itertools.product(args.size or [sizes[0]], args.kinds[:1] if args.tiny else args.kinds):
            serve(
                subject,
                size=size,
                steps=steps,
                count=count,
                loads=args.loads[:1] if args.tiny else args.loads,
                max_step_units=args.max_step_units,
                compiled=kind == "compiled",
                static=args.static,
                computed_below=args.computed_below,
                save=functools.partial(save, f"serve_{size}_{kind}"),
            )
    if "ablate" in parts:  # last: it leaves the denoiser in fp8
        from image_steps import MODES

        subject = build(args.arch, tiny=args.tiny, device=device, dtype=dtype)
        modes = args.modes or (("eager", "compiled") if args.tiny else MODES)
        ablate(subject, sizes, args.tiny, modes, functools.partial(save, "ablate"))


if __name__ == "__main__":
    main()
