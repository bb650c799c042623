"""The native language runtime on one GPU with random weights: is it right, and what does a step cost?

    python bench/gpu/native.py           # about a minute on an H100
    python bench/gpu/native.py --tiny    # on a CPU, to try it

First, float32: greedy answers of requests that join and leave, with steps computed, replayed and begun ahead, beside
``generate`` of stock transformers. Then, bfloat16 and Llama-3.2-1B's shape: the serving loop under 256 streams, ahead and
not, with what the host waits for the card; and seconds of a recorded step by rows at contexts of 640 tokens, beside its
floor (weights and cache once over the memory's bandwidth), of the same step computed, and of a prompt chunk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm_overhead import Load, import_sixfold, load_native, make_model, run_local

_BYTES_PER_S = 3.35e12  # an H100's memory, by its data sheet


def check_equal(device: str) -> dict[str, Any]:
    """Shares of tokens that equal those of ``generate``, float32."""
    import torch
    import transformers

    from sixfold.core.family import LoadContext
    from sixfold.plugins.llm.loader import load
    from sixfold.plugins.llm.options import TransformersOptions

    folder = Path(tempfile.mkdtemp(prefix="equal-"))
    make_model(folder, tiny=True)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.initializer_range = 0.3  # far apart logits: greedy choices are no toss-ups
    stock: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    stock.save_pretrained(folder)
    stock.to(device)
    prompts = [torch.randint(300, 1500, (length,)).tolist() for length in (1, 5, 17, 64, 130, 300)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=device)
        output = stock.generate(ids, max_new_tokens=40, min_new_tokens=40, do_sample=False, pad_token_id=0)
        expected.append(output[0, len(prompt) :].tolist())
    found: dict[str, Any] = {}
    for name, rows, ahead in (("computed", 0, False), ("replayed", 64, False), ("ahead", 64, True)):
        options = TransformersOptions.model_validate(
            {"dtype": "float32", "max_model_len": 512, "kv_cache_bytes": 64 << 20, "cuda_graph_rows": rows}
            | {"steps_ahead": ahead, "speculation": {"method": "off"}}
        )
        model = load(LoadContext(model_name="equal", path=folder, device=device, num_threads=2, options=options))
        model.warm_up()
        answers = answer(model, prompts, num_tokens=40)
        pairs = [(a, e) for mine, its in zip(answers, expected, strict=True) for a, e in zip(mine, its, strict=True)]
        found[name] = sum(a == e for a, e in pairs) / len(pairs)
        model.close()
    return found


def answer(model: Any, prompts: Sequence[list[int]], *, num_tokens: int) -> list[list[int]]:
    """Greedy answers; a request joins every third step, prompts are computed in chunks of at most 50 tokens."""
    from sixfold.core.batching.model import Granted
    from sixfold.core.messages import Request
    from sixfold.plugins.llm.generation import CompletionInput, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=num_tokens, min_tokens=num_tokens)
    requests = [
        Request(request_id=str(i), input=CompletionInput(prompts=(tuple(prompt),), params=params), arrived_s=0.0)
        for i, prompt in enumerate(prompts)
    ]
    sequences = [model.prepare(request, model.split(request)[0])[0] for request in requests]
    waiting, running = list(sequences), []
    turn = 0
    flights: list[Any] = []
    while waiting or running:
        if waiting and turn % 3 == 0:
            running.append(waiting.pop(0))
        turn += 1
        going = [(s, cost) for s in running if (cost := model.cost(s)) is not None]
        batch = [Granted(s, model.reserve(s, min(50, cost.units))) for s, cost in going]
        flights.append((batch, model.begin(batch)) if batch else None)
        settled = flights.pop(0) if len(flights) > 1 or not model.begins_steps else None
        for granted, outcome in zip(settled[0], settled[1].finish(), strict=True) if settled else ():
            assert outcome.error is None, outcome.error
            if outcome.done:
                running.remove(granted.sequence)
                model.release(granted.sequence)
    return [list(sequence.output_ids) for sequence in sequences]


def time_steps(tiny: bool) -> list[dict[str, Any]]:
    """Seconds of steps of the 1B shape."""
    import torch

    from sixfold.plugins.llm.cached_tokens import CachedTokens

    folder = Path(tempfile.mkdtemp(prefix="steps-")) / "llama"
    make_model(folder, tiny)
    model = load_native(folder, tiny)
    began_s = time.perf_counter()
    model.warm_up()
    print(f"warm-up {time.perf_counter() - began_s:.1f} s", flush=True)
    decoder, cache = model._decoder, model._decoder.cache
    context = 40 if tiny else 640
    weights = sum(p.nbytes for p in decoder._model.parameters())
    found: list[dict[str, Any]] = []

    def measure(call: Callable[[], object], count: int) -> float:
        times: list[float] = []
        for _ in range(count):
            began_s = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began_s)
        return statistics.median(times[1:])

    for num_rows in (1, 4) if tiny else (1, 8, 32, 64, 128, 256):
        rows = [CachedTokens([300 + i % 100 for i in range(context)]) for _ in range(num_rows)]
        for row in rows:
            assert cache.reserve(row, context) == context
            row.num_computed = context - 1
        cached = num_rows * context * cache.num_bytes / cache.num_tokens
        with torch.inference_mode():
            layout = decoder.lay_out(rows, [1] * num_rows)
            graphs, decoder._graphs = decoder._graphs, None
            computed_s = measure(lambda: decoder.forward(layout), 4)  # noqa: B023  # called at once
            decoder._graphs = graphs
            found.append(
                {
                    "rows": num_rows,
                    "lay_out_s": measure(lambda: decoder.lay_out(rows, [1] * num_rows), 6),  # noqa: B023
                    "replayed_s": measure(lambda: decoder.forward(layout), 20),  # noqa: B023
                    "computed_s": computed_s,
                    "floor_s": (weights + cached) / _BYTES_PER_S,
                }
            )
        print(json.dumps(found[-1]), flush=True)
        for row in rows:
            cache.free(row)
    prompt = CachedTokens([300] * (64 if tiny else 512))
    rows = [CachedTokens(prompt.token_ids) for _ in range(2 if tiny else 16)]
    for row in rows:
        assert cache.reserve(row, len(row.token_ids)) == len(row.token_ids)
    with torch.inference_mode():
        layout = decoder.lay_out(rows, [len(row.token_ids) for row in rows])
        seconds = measure(lambda: decoder.forward(layout), 5)
    num_tokens = len(rows) * len(prompt.token_ids)
    flops = 2 * num_tokens * (weights // 2)
    found.append({"prompt_tokens": num_tokens, "computed_s": seconds, "tflops_of_linears": flops / seconds / 1e12})
    print(json.dumps(found[-1]), flush=True)
    return found


async def serve(tiny: bool, ahead: bool, rounds: int) -> dict[str, Any]:
    """The serving loop in this process under 256 streams of 512 + 128 tokens: rates, and where a step's time goes.

    ``waited_ms`` is what the device thread waited for the card, of ``step_ms``; the rest is the host's own.
    """
    from sixfold.core.batching.manager import Limits
    from sixfold.core.runtime.local_replica import LocalReplica
    from sixfold.plugins.llm.host_copy import HostCopy

    folder = Path(tempfile.mkdtemp(prefix="serve-")) / "llama"
    vocab = make_model(folder, tiny)
    model = load_native(folder, tiny, steps_ahead=ahead)
    model.warm_up()
    load = Load(4 if tiny else 256, 16 if tiny else 512, 8 if tiny else 128, vocab)
    replica = LocalReplica(model, limits=Limits(max_queue_units=1 << 30, max_running_sequences=load.requests))
    waited_s = 0.0
    wait = HostCopy.wait

    def measured(copy: Any) -> Any:
        nonlocal waited_s
        began_s = time.perf_counter()
        try:
            return wait(copy)
        finally:
            waited_s += time.perf_counter() - began_s

    HostCopy.wait = measured  # type: ignore[method-assign]
    try:
        await run_local(replica, load, "warm", 0)
        found: list[dict[str, float]] = []
        for number in range(rounds):
            steps, waited_s = replica.snapshot.metrics["steps_total"], 0.0
            made = await run_local(replica, load, "native", 20 + number)
            steps = replica.snapshot.metrics["steps_total"] - steps
            times = {"step_ms": 1e3 * made.seconds / steps, "waited_ms": 1e3 * waited_s / steps, "steps": steps}
            found.append(made.figures() | {name: round(value, 2) for name, value in times.items()})
            print("SERVE ahead", ahead, json.dumps(found[-1]), flush=True)
    finally:
        HostCopy.wait = wait  # type: ignore[method-assign]
        await replica.close()
    return {"ahead": ahead, "rounds": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--part", nargs="+", default=["equal", "serve", "steps"], choices=["equal", "serve", "steps"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--site", type=Path)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "native.json")
    args = parser.parse_args()
    import_sixfold(args.site)
    import torch

    device = "cpu" if args.tiny else "cuda:0"
    card = "CPU" if args.tiny else torch.cuda.get_device_name()
    print(f"random weights, {card}, torch {torch.__version__}", flush=True)
    result: dict[str, Any] = {"card": card}

    def keep(name: str, value: Any) -> None:
        result[name] = value
        if not args.tiny:
            args.out.write_text(json.dumps(result, indent=1) + "\n")

    if "equal" in args.part:
        keep("equal", check_equal(device))
        print("equal to generate:", result["equal"], flush=True)
    if "serve" in args.part:
        for ahead in (True, False):
            keep(f"serve_{ahead}", asyncio.run(serve(args.tiny, ahead, args.rounds)))
    if "steps" in args.part:
        keep("steps", time_steps(args.tiny))


if __name__ == "__main__":
    main()
