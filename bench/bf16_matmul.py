"""Products of few rows: oneDNN's packed linear, this project's bfloat16 kernel, and those for 8 and 4 bits, in one run.

    python bench/bf16_matmul.py [--rows 1,8,24,256] [--repeats 15]

Shapes are those of SmolLM2-135M. Each figure is the median time of one product, in ms; weights of thirty layers are used by
turns, so that they come from memory as in a model. The floor is the larger of operations over the best rate seen in this run
and bytes over the best bandwidth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from sixfold.core.runtime.jit import set_num_threads
from sixfold.core.runtime.linear import PackedLinear
from sixfold.core.runtime.quantized_linear import ByteScheme, QuantizedLinear
from sixfold.core.runtime.step_linear import StepLinear, has_panels

SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536), (49_152, 576))
NUM_LAYERS = 30
BYTE_SCHEMES = {
    "int8": ByteScheme(num_bits=8, keeps_inputs=True),
    "int8+8": ByteScheme(num_bits=8, keeps_inputs=False),
    "int4": ByteScheme(num_bits=4, keeps_inputs=True),
    "int4+8": ByteScheme(num_bits=4, keeps_inputs=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,24,256", help="row counts, by commas")
    parser.add_argument("--repeats", type=int, default=15, help="rounds; the contenders take turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    set_num_threads(args.threads)
    if not has_panels(torch.zeros(2, 2, dtype=torch.bfloat16)):
        raise SystemExit("This CPU's products are oneDNN's: there is nothing to compare.")
    rate = peak_flops()
    bandwidth = read_bandwidth()
    print(f"torch {torch.__version__}, {args.threads} threads, {rate / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s\n")
    print("Medians in ms; the floor is bfloat16's. +8 rounds inputs to 8 bits, too.\n")
    print(f"| rows | weight | oneDNN | bf16 | {' | '.join(BYTE_SCHEMES)} | floor |")
    print("|---|---|---|---|" + "---|" * (len(BYTE_SCHEMES) + 1))
    for rows in map(int, args.rows.split(",")):
        for shape in SHAPES:
            measure(rows, *shape, args.repeats, rate, bandwidth)


def measure(rows: int, outputs: int, inputs: int, repeats: int, rate: float, bandwidth: float) -> None:
    num_layers = NUM_LAYERS if outputs < 10_000 else 1
    stock = [nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16) for _ in range(num_layers)]
    x = torch.randn(rows, inputs, dtype=torch.bfloat16)
    contenders: list[list[nn.Module]] = [
        [kind.from_linear(linear) for linear in stock] for kind in (PackedLinear, StepLinear)
    ]
    contenders += [[QuantizedLinear.from_linears([linear], s) for linear in stock] for s in BYTE_SCHEMES.values()]
    times_s: list[list[float]] = [[] for _ in contenders]
    with torch.inference_mode():
        for _ in range(repeats + 2):
            for layers, times in zip(contenders, times_s, strict=True):
                times.append(elapsed(lambda layers=layers: [layer(x) for layer in layers]) / num_layers)
    floor = max(2 * rows * outputs * inputs / rate, 2 * outputs * inputs / bandwidth)
    cells = [f"{statistics.median(times[2:]) * 1e3:.3f}" for times in times_s]
    print(f"| {rows} | {outputs:,} x {inputs} | {' | '.join(cells)} | {floor * 1e3:.3f} |", flush=True)


def elapsed(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def peak_flops(size: int = 2048) -> float:
    a, b = torch.randn(2, size, size).bfloat16()
    return 2 * size**3 / min(elapsed(lambda: a @ b) for _ in range(6))


def read_bandwidth(num_bytes: int = 1 << 29) -> float:
    data = torch.ones(num_bytes // 8, dtype=torch.float64)
    return num_bytes / min(elapsed(data.sum) for _ in range(5))


if __name__ == "__main__":
    main()
