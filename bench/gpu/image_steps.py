"""Seconds of a denoiser's forward and of a decode, each optimisation switched on alone and all together, beside the floor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch

PEAK_FLOPS = 798e12  # bfloat16 matmul, measured on an H100
MODES = (
    "eager",
    "graphs",
    "channels last+graphs",
    "tuned+graphs",
    "compiled",
    "compiled+graphs",
    "cached",
    "fp8+graphs",
    "fp8+compiled+graphs",
)


def set_compiled(denoiser: Any, on: bool) -> None:
    """Compiles the denoiser's repeated blocks for any number of rows, or takes that back."""
    if on:
        denoiser.compile_repeated_blocks(dynamic=True)
        return
    for module in denoiser.modules():
        module._compiled_call_impl = None


def set_fp8(denoiser: Any) -> int:
    """Puts the linear layers into fp8 as `quantization: {scheme: fp8, what: weights+activations}` does; says how many."""
    swaps = swapped_fp8(denoiser)
    for parent, child, _stock, fp8 in swaps:
        setattr(parent, child, fp8)
    return len(swaps)


def swapped_fp8(denoiser: Any) -> list[tuple[Any, str, Any, Any]]:
    """What `set_fp8` would change, changing nothing: parent, name, the stock layer, the one in fp8."""
    from sixfold.core.runtime.fp8_linear import can_hold, from_linear
    from sixfold.core.runtime.quantization.plan import LinearShape, plan
    from sixfold.core.runtime.quantization.policy import QuantizationPolicy
    from sixfold.plugins.image.rules import QUANTIZATION_SKIP

    linears = {name: part for name, part in denoiser.named_modules() if type(part) is torch.nn.Linear}
    shapes = tuple(LinearShape(name, layer.out_features, layer.in_features) for name, layer in linears.items())
    policy = QuantizationPolicy.model_validate({"scheme": "fp8", "what": "weights+activations"})
    chosen = [decision.layer.name for decision in plan(shapes, policy, defaults=QUANTIZATION_SKIP) if decision.method]
    found: list[tuple[Any, str, Any, Any]] = []
    for name in chosen:
        if can_hold(linears[name]):
            parent, _, child = name.rpartition(".")
            found.append((denoiser.get_submodule(parent), child, linears[name], from_linear(linears[name])))
    return found


def seconds_of(run: Callable[[], Any], repeats: int, *, warm: int = 3) -> float:
    """Median seconds of a call, the device's work included."""

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    times: list[float] = []
    with torch.no_grad():
        for index in range(warm + repeats):
            wait()
            began_s = time.perf_counter()
            run()
            wait()
            if index >= warm:
                times.append(time.perf_counter() - began_s)
    return sorted(times)[len(times) // 2]


def flops_of(run: Callable[[], Any]) -> float:
    """Floating-point operations of a call: products, convolutions and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())


def measure_steps(
    denoiser: Any,
    arguments_of: Callable[[int], dict[str, Any]],
    *,
    rows: Sequence[int],
    modes: Sequence[str],
    repeats: int,
    report: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Seconds of a forward by mode and rows.

    Args:
        denoiser: Measured; in fp8 afterwards if that was among the modes.
        arguments_of: Of a call, by rows.
        rows: Numbers of rows.
        modes: Of `MODES`; those in fp8 last.
        repeats: Times that each is measured.
        report: Called after each mode with all that was found.
    """
    flops = flops_of(lambda: denoiser(**arguments_of(1)))
    found: list[dict[str, Any]] = []
    for mode in modes:
        if mode.startswith("fp8") and not any(row["mode"].startswith("fp8") for row in found):
            print(f"fp8: {set_fp8(denoiser)} layers", flush=True)
        if mode == "cached" and not has_blocks(denoiser):
            continue
        set_compiled(denoiser, "compiled" in mode)
        denoiser.to(memory_format=torch.channels_last if "channels last" in mode else torch.contiguous_format)
        torch.backends.cudnn.benchmark = "tuned" in mode  # convolutions chosen by trial
        began_s = time.perf_counter()
        for count in rows:
            given = arguments_of(count)
            with contextlib.ExitStack() as stack:
                if mode == "cached":
                    forward = stack.enter_context(with_all_cached(denoiser, given, count))
                else:
                    forward = _forward(denoiser, given, "graphs" in mode)
                seconds = seconds_of(forward, repeats)
            floor_s = flops * count / PEAK_FLOPS
            found.append({"mode": mode, "rows": count, "s": seconds, "floor_s": floor_s, "of_peak": floor_s / seconds})
        print(f"{mode}: {time.perf_counter() - began_s:.0f} s to measure", flush=True)
        set_compiled(denoiser, False)
        report(found)
    return found


def has_blocks(denoiser: Any) -> bool:
    """Whether the library registers its blocks for caching; a UNet's it does not."""
    from sixfold.core.rendezvous.row_cache import transformer_blocks

    return bool(transformer_blocks(denoiser))


@contextlib.contextmanager
def with_all_cached(denoiser: Any, arguments: dict[str, Any], rows: int) -> Generator[Callable[[], Any]]:
    """A forward that skips all blocks but the first, from the second time on: the most that first-block caching gives."""
    from sixfold.core.rendezvous.row_cache import RowCache, RowGroup, transformer_blocks

    cache = RowCache(transformer_blocks(denoiser))

    def run() -> Any:
        with cache.running([RowGroup(owner="all", context=None, rows=rows, threshold=float("inf"))]):
            return denoiser(**arguments)

    try:
        yield run
    finally:
        cache.close()


def _forward(denoiser: Any, arguments: dict[str, Any], graphs: bool) -> Callable[[], Any]:
    """One forward as the engine runs it: with graphs, rows are copied in and the answer out."""
    return replayed(denoiser, arguments) if graphs else lambda: denoiser(**arguments)


def replayed(denoiser: Any, arguments: dict[str, Any]) -> Callable[[], Any]:
    """The forward as a replayed graph, as the engine runs it; on a CPU it is computed."""
    from sixfold.core.rendezvous.calls import TensorDigests, capture
    from sixfold.core.rendezvous.graphs import RowGraphs
    from sixfold.core.runtime.cuda_graphs import capture_cuda_graph
    from sixfold.plugins.image.rules import call_rules

    rules = call_rules(16).get(type(denoiser).__name__)
    call = capture(
        denoiser, (), arguments, rules=rules or call_rules(16)["PixArtTransformer2DModel"], digests=TensorDigests()
    )
    device = call.main.device
    if device.type != "cuda":
        return lambda: denoiser(**arguments)
    recorded = RowGraphs(capture_cuda_graph(device), device, (call.rows,), max_units=1 << 30)
    recorded.records_at_once = True

    def replay() -> Any:
        answers = recorded.run([call])
        if answers is None:
            raise RuntimeError("the denoiser can't be recorded")
        return answers

    replay()  # recorded now, in the form that the denoiser has
    return replay


def measure_decode(
    vae: Any, latents_of: Callable[[int], Any], rows: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Seconds of a decode by memory format and rows."""
    found: list[dict[str, Any]] = []
    for name, memory_format in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
        vae.to(memory_format=memory_format)
        for count in rows:
            seconds = seconds_of(lambda count=count: vae.decode(latents_of(count)), repeats)
            found.append({"mode": name, "rows": count, "s": seconds, "s_a_picture": seconds / count})
    return found


def steps_table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: milliseconds by rows and mode, with the floor, and how many times as fast as eager each is."""
    rows = sorted({row["rows"] for row in found})
    by_place = {(row["mode"], row["rows"]): row for row in found}
    lines = ["| mode | " + " | ".join(f"{count} rows, ms (x)" for count in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for mode in dict.fromkeys(row["mode"] for row in found):
        cells = []
        for count in rows:
            row, base = by_place.get((mode, count)), by_place[("eager", count)]
            cells.append(
                ""
                if row is None
                else f"{row['s'] * 1e3:.1f} ({base['s'] / row['s']:.2f}), {row['of_peak']:.0%} of peak"
            )
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    floors = (f"{by_place[('eager', count)]['floor_s'] * 1e3:.1f}" for count in rows)
    return "\n".join([*lines, "| floor | " + " | ".join(floors) + " |"])
