"""Embeddings on one GPU with random weights: how near to the card's peak, and how far before the library?

    python bench/gpu/embedding.py           # about a minute a shape on an H100
    python bench/gpu/embedding.py --tiny    # on a CPU, to try it

For each shape (Qwen3-Embedding-0.6B, bge-large, MiniLM), bfloat16:

- ``step``: one step of 4,096 tokens. Floor: its operations without padding, attention's too, over the rate of a large
  product in this very run. Replayed as a graph and computed call by call.
- ``encode``: skewed lengths (those of bench/data/embedding_texts.json) in requests of 64 through the batch manager, beside
  ``SentenceTransformer.encode`` with the same weights and the same type (batches of 32 and 256; it sorts by length).
- ``serve``: requests of one text at random moments (Poisson) at 0.9 of what the peer can do, beside a server that runs one
  batch at a time: up to 32 requests or 10 ms, then ``encode``, as LitServe does, without its HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vllm_overhead import import_sixfold

DATA = Path(__file__).parents[1] / "data" / "embedding_texts.json"
PEAK = 798e12  # bfloat16 products on an H100, measured
STEP_TOKENS = 4096
VOCABULARY = 30_000


def shapes(tiny: bool) -> dict[str, Any]:
    """Configurations by name."""
    from transformers import BertConfig, Qwen3Config

    small: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    bert: dict[str, Any] = {"vocab_size": VOCABULARY + 4, "max_position_embeddings": 512, "pad_token_id": 1}
    qwen: dict[str, Any] = {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "pad_token_id": 1,
    }
    if tiny:
        qwen |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY + 4}
        return {"qwen3-0.6b": Qwen3Config(**small, **qwen), "bge-large": BertConfig(**small, **bert)}
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    mini = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    qwen |= {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072}
    return {
        "qwen3-0.6b": Qwen3Config(**qwen, vocab_size=151_669),
        "bge-large": BertConfig(**large, **bert),
        "minilm": BertConfig(**mini, **bert),
    }


def save(folder: Path, config: Any) -> None:
    """A sentence-transformers folder whose words are numbers."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers import models as tokenizer_models
    from transformers import AutoModel, PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = {word: i for i, word in enumerate([*special, *(f"w{n}" for n in range(VOCABULARY))])}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast: Any = PreTrainedTokenizerFast
    fast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    network: Any = AutoModel.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder)
    del network
    transformer = models.Transformer(str(folder), max_seq_length=512)
    pooling = models.Pooling(config.hidden_size, pooling_mode="lasttoken" if config.model_type == "qwen3" else "cls")
    SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu").save(str(folder / "saved"))


def flops(lengths: Sequence[int], config: Any) -> float:
    """Operations of a batch without any padding."""
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    causal = config.model_type == "qwen3"
    head_dim = config.head_dim if causal else width // heads
    kv_heads = config.num_key_value_heads if causal else heads
    linear = width * head_dim * (2 * heads + 2 * kv_heads) + (3 if causal else 2) * width * inner
    attention = sum(4 * n * n * heads * head_dim for n in lengths) / (2 if causal else 1)
    return float(config.num_hidden_layers * (2 * sum(lengths) * linear + attention))


def text(num_tokens: int, source: random.Random) -> str:
    return " ".join(f"w{source.randrange(VOCABULARY)}" for _ in range(max(1, num_tokens - 2)))


def matmul_rate(device: str) -> float:
    """FLOP/s of a large product in this run."""
    import torch

    size = 256 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(lambda: a @ b, device, 20)
    return 2 * size**3 / seconds


def timed(call: Callable[[], object], device: str, count: int) -> float:
    """Seconds a call, ``count`` of them back to back."""
    import torch

    for _ in range(3):
        call()
    if device != "cpu":
        torch.cuda.synchronize()
    began_s = time.perf_counter()
    for _ in range(count):
        call()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - began_s) / count


def measure_step(
    model: Any, config: Any, device: str, rate: float, lengths_of_texts: Sequence[int]
) -> list[dict[str, Any]]:
    """Steps of 4,096 tokens of equal and of skewed lengths."""
    rows: list[dict[str, Any]] = []
    encoder, step_tokens = model._encoder, STEP_TOKENS if device != "cpu" else 256
    skewed: list[int] = []
    for length in lengths_of_texts:
        skewed.append(min(length, step_tokens - sum(skewed)))
        if sum(skewed) == step_tokens:
            break
    for name, lengths in (("equal, 512", [min(512, step_tokens)] * max(1, step_tokens // 512)), ("skewed", skewed)):
        batch = [np.random.default_rng(i).integers(4, VOCABULARY, n) for i, n in enumerate(lengths)]
        prompts = [0] * len(batch)

        def start(batch: Any = batch, prompts: Any = prompts) -> object:
            return encoder.begin(batch, prompts)

        def whole(batch: Any = batch, prompts: Any = prompts) -> object:
            return encoder.embed(batch, prompts)

        floor_s = flops(lengths, config) / rate
        row = {"lengths": name, "texts": len(lengths), "tokens": sum(lengths), "floor_s": floor_s}
        count = 50 if device != "cpu" else 2
        row["pipelined_s"] = timed(start, device, count)
        row["alone_s"] = timed(whole, device, count // 2)
        forward = encoder.forward
        if getattr(forward, "_replays", None):
            kept, forward._replays = forward._replays, {}
            row["computed_s"] = timed(start, device, count // 2)
            forward._replays = kept
        row["of_peak_run"] = floor_s / row["pipelined_s"]
        row["of_798"] = flops(lengths, config) / PEAK / row["pipelined_s"]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def profile(model: Any, device: str) -> list[tuple[str, float]]:
    """Milliseconds a step by kernel, of the step of equal lengths."""
    import torch

    if device == "cpu":
        return []
    batch = [np.random.default_rng(i).integers(4, VOCABULARY, 512) for i in range(STEP_TOKENS // 512)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(5):
            model._encoder.embed(batch, [0] * len(batch))
    kernels = sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)[:14]
    return [(e.key[:60], round(e.self_device_time_total / 5000, 3)) for e in kernels]


async def ask(replica: Any, texts: Sequence[str], number: int) -> float:
    """Seconds from sending to the answer."""
    from sixfold.core.messages import Failed, Request
    from sixfold.plugins.embedding.schema import EmbeddingInput

    began_s = time.monotonic()
    wanted = EmbeddingInput(texts=tuple(texts), truncate_tokens=-1)
    async with replica.submit(Request(request_id=str(number), input=wanted, arrived_s=began_s)) as stream:
        while events := await stream.next_events():
            for event in events:
                assert not isinstance(event, Failed), event
    return time.monotonic() - began_s


async def encode_ours(replica: Any, texts: Sequence[str]) -> float:
    """Seconds for all texts in requests of 64."""
    began_s = time.monotonic()
    await asyncio.gather(*(ask(replica, texts[i : i + 64], i) for i in range(0, len(texts), 64)))
    return time.monotonic() - began_s


async def serve_ours(replica: Any, texts: Sequence[str], gaps_s: Sequence[float]) -> list[float]:
    """Latencies of single texts sent at the given distances."""
    tasks: list[asyncio.Task[float]] = []
    at_s = time.monotonic()
    for number, (each, gap_s) in enumerate(zip(texts, gaps_s, strict=True)):
        at_s += gap_s
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))
        tasks.append(asyncio.create_task(ask(replica, [each], 1_000_000 + number)))
    return list(await asyncio.gather(*tasks))


def serve_in_batches(library: Any, texts: Sequence[str], gaps_s: Sequence[float]) -> list[float]:
    """The same by a server of one batch at a time."""
    waiting: queue.Queue[tuple[str, float] | None] = queue.Queue()
    latencies: list[float] = []

    def run() -> None:
        while (first := waiting.get()) is not None:
            batch = [first]
            until_s = time.monotonic() + 0.01
            while len(batch) < 32 and (left_s := until_s - time.monotonic()) > 0:
                try:
                    another = waiting.get(timeout=left_s)
                except queue.Empty:
                    break
                if another is None:
                    waiting.put(None)
                    break
                batch.append(another)
            library.encode([each for each, _ in batch], batch_size=32, show_progress_bar=False)
            now_s = time.monotonic()
            latencies.extend(now_s - sent_s for _, sent_s in batch)

    thread = threading.Thread(target=run)
    thread.start()
    at_s = time.monotonic()
    for each, gap_s in zip(texts, gaps_s, strict=True):
        at_s += gap_s
        time.sleep(max(0.0, at_s - time.monotonic()))
        waiting.put((each, time.monotonic()))
    waiting.put(None)
    thread.join()
    return latencies


def quantiles(latencies_s: Sequence[float]) -> dict[str, float]:
    ordered = sorted(latencies_s)
    return {f"p{q}_ms": round(1e3 * ordered[int(q / 100 * (len(ordered) - 1))], 2) for q in (50, 95, 99)}


def measure_traffic(model: Any, library: Any, lengths: Sequence[int], tiny: bool, result: dict[str, Any]) -> None:
    """``encode`` and ``serve`` of one shape."""
    from sixfold.core.batching.manager import Limits
    from sixfold.core.runtime.local_replica import LocalReplica

    source = random.Random(1)
    texts = [text(length, source) for length in (lengths[:64] if tiny else lengths)]
    tokens = sum(lengths[: len(texts)])
    library.encode(texts, batch_size=256, show_progress_bar=False)  # not counted: kernels are chosen, memory grows
    for size in (256, 32):
        began_s = time.perf_counter()
        library.encode(texts, batch_size=size, show_progress_bar=False)
        result[f"library_{size}_tokens_per_s"] = round(tokens / (time.perf_counter() - began_s))
    few = texts[:320]
    began_s = time.perf_counter()
    for i in range(0, len(few), 32):
        library.encode(few[i : i + 32], batch_size=32, show_progress_bar=False)
    rate = 0.9 * len(few) / (time.perf_counter() - began_s)
    rate = min(rate, 50.0) if tiny else rate
    num = 20 if tiny else min(len(texts), int(4 * rate))
    gaps_s = [source.expovariate(rate) for _ in range(num)]

    async def ours() -> None:
        limits = Limits(max_queue_units=1 << 30, max_running_sequences=4096)
        replica = LocalReplica(model, limits=limits, num_pool_threads=2)
        try:
            await encode_ours(replica, texts[: 16 if tiny else 1024])
            seconds = [await encode_ours(replica, texts) for _ in range(3)]
            result["ours_tokens_per_s"] = round(tokens / statistics.median(seconds))
            await serve_ours(replica, texts[: num // 8 + 1], gaps_s[: num // 8 + 1])
            result["ours_served"] = quantiles(await serve_ours(replica, texts[:num], gaps_s))
        finally:
            await replica.close()

    result["requests_per_s"] = round(rate, 1)
    result["batches_served"] = quantiles(serve_in_batches(library, texts[:num], gaps_s))
    asyncio.run(ours())
    best = max(result["library_32_tokens_per_s"], result["library_256_tokens_per_s"])
    result["encode_ratio"] = round(result["ours_tokens_per_s"] / best, 2)
    result["encode_ratio_defaults"] = round(result["ours_tokens_per_s"] / result["library_32_tokens_per_s"], 2)
    result["p95_below"] = round(1 - result["ours_served"]["p95_ms"] / result["batches_served"]["p95_ms"], 3)
    print(json.dumps({key: value for key, value in result.items() if key not in ("step", "kernels")}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--site", type=Path)
    parser.add_argument("--shapes", nargs="+")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--tiles", type=Path, help="what attention.py wrote: tiles to take in place of the code's")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "embedding.json")
    args = parser.parse_args()
    import_sixfold(args.site)
    import logging

    import torch
    from sentence_transformers import SentenceTransformer

    from sixfold.core.family import LoadContext
    from sixfold.plugins.embedding.loader import load
    from sixfold.plugins.embedding.options import EmbeddingOptions

    if args.tiles:
        from sixfold.core.runtime.gpu_layers import TILES, Tile

        for name, row in json.loads(args.tiles.read_text()).items():
            dim, causal = name.split()
            TILES[int(dim), causal == "True"] = Tile(*map(int, row["best"].split()))
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("sixfold").setLevel(logging.INFO)
    device = "cpu" if args.tiny else "cuda:0"
    card = "CPU" if args.tiny else torch.cuda.get_device_name()
    rate = matmul_rate(device)
    print(f"random weights, {card}, torch {torch.__version__}, product {rate / 1e12:.0f} TFLOP/s", flush=True)
    report: dict[str, Any] = {"card": card, "torch": torch.__version__, "product_flops": rate, "shapes": {}}
    lengths = [max(3, count) for _, count in json.loads(DATA.read_text())][: args.texts]
    for name, config in shapes(args.tiny).items():
        if args.shapes and name not in args.shapes:
            continue
        result: dict[str, Any] = {}
        report["shapes"][name] = result
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        save(folder, config)
        began_s = time.perf_counter()
        options = EmbeddingOptions(dtype="bfloat16")
        model = load(LoadContext(model_name=name, path=folder / "saved", device=device, num_threads=2, options=options))
        loaded_s = time.perf_counter()
        model.warm_up()
        result["execution"] = model.info.details["execution"]
        result["load_s"], result["warm_up_s"] = loaded_s - began_s, time.perf_counter() - loaded_s
        print(name, result, flush=True)
        result["step"] = measure_step(model, config, device, rate, lengths)
        result["kernels"] = profile(model, device)
        print(json.dumps(result["kernels"]), flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        library: Any = SentenceTransformer(str(folder / "saved"), device=device, model_kwargs={"dtype": torch.bfloat16})
        measure_traffic(model, library, lengths, args.tiny, result)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
