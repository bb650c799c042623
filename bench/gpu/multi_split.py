"""Prompts computed on one GPU and answered on another, beside replicas that do both; part of multi.py.

    python bench/gpu/multi_split.py --folder FOLDER --ranks 2 --out FILE [--tiny]

First, in float32, one prompt after another by the product's own two requests, over each transport: are the answers those of
the answering server alone, and how fast do the blocks come? Then, in bfloat16 and over HTTP through gateways: steady streams,
and a burst of long prompts in their middle, with all servers alike and with the same servers in two roles, in turns.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from multi_burst import Burst, run_burst
from multi_results import Results
from multi_servers import Server, running, until
from vllm_overhead import import_sixfold, runner

PATH = "/v1/completions"
MODEL = "bench"
_NUM_AT_ONCE = 8

STEPS = ("split-bursts", "split-equal")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked for.

    Attributes:
        vocab: Size of the vocabulary.
        num_equal: Prompts that are compared in float32.
        equal_tokens: Shortest and longest of them.
        answer_tokens: Of each of their answers.
        long_tokens: Of the prompts whose way is timed.
        cache_bytes: Of a server's cache.
        burst: Streams and burst, for a pair of servers.
        rounds: Of both ways.
    """

    vocab: int
    num_equal: int
    equal_tokens: tuple[int, int]
    answer_tokens: int
    long_tokens: int
    cache_bytes: int
    burst: Burst
    rounds: int

    def prompt(self, seed: int, num_tokens: int) -> list[int]:
        """Random words; no two seeds begin alike."""
        return random.Random(seed).choices(range(300, self.vocab - 300), k=num_tokens)


def load(tiny: bool, pairs: int) -> Load:
    """For so many pairs of servers."""
    if tiny:
        burst = Burst(
            streams=4, stream_prompt=24, stream_tokens=240, lead_s=0.3, prompts=(400, 500, 600, 700), tokens=8
        )
        return Load(
            vocab=2048,
            num_equal=12,
            equal_tokens=(40, 200),
            answer_tokens=24,
            long_tokens=600,
            cache_bytes=64 << 20,
            burst=burst,
            rounds=1,
        )
    prompts = tuple(range(8192, 16_385, 1170)) * pairs
    burst = Burst(streams=16 * pairs, stream_prompt=128, stream_tokens=1800, lead_s=1.0, prompts=prompts, tokens=16)
    return Load(
        vocab=128_256,
        num_equal=20,
        equal_tokens=(300, 2000),
        answer_tokens=32,
        long_tokens=8192,
        cache_bytes=12 << 30,
        burst=burst,
        rounds=3,
    )


def server(name: str, where: Path, transfer: dict[str, Any], dtype: str, wanted: Load, device: int | None) -> Server:
    """A server of the model that exchanges blocks."""
    options = {
        "dtype": dtype,
        "kv_cache_bytes": wanted.cache_bytes,
        "max_model_len": wanted.burst.longest,
        "kv_transfer": transfer,
        "cuda_graph_rows": 64,  # no step without prompts has more rows, and each size that is recorded takes time
        "speculation": {"method": "off"},  # it depends on how many streams share a step, which differs between the ways
    }
    entry = {"source": f"file:{where}", "family": "llm/transformers", "options": options}
    devices = None if device is None else [device]
    return Server(name, {"models": {MODEL: entry}}, Path(tempfile.mkdtemp(prefix="split-")), devices=devices)


def body_of(prompt: Sequence[int], num_tokens: int, salt: str) -> dict[str, Any]:
    """A greedy completion; its salt keeps it from what others have left in the cache."""
    return {
        "model": MODEL,
        "prompt": list(prompt),
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_salt": salt,
    }


def split(prefill: Server, decode: Server, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], float]:
    """The answer by way of both, what was handed over, and the seconds of the second request."""
    from sixfold.scaling.disagg.bodies import can_split, decode_body, handle_of, prefill_body

    assert can_split(PATH, body)
    given = handle_of(prefill.ask(PATH, prefill_body(body)))
    assert given is not None, f"{prefill.name} has given no handle"
    began_s = time.perf_counter()
    answer = decode.ask(PATH, decode_body(body, given))
    return answer, dict(given["handle"]), time.perf_counter() - began_s


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["text"]
    return text


def check_equal(wanted: Load, prefill: Server, decode: Server, transport: str) -> dict[str, Any]:
    """Answers by way of one transport beside those of the answering server alone; tokens are words of the text."""
    draw = random.Random(7)
    lengths = [draw.randint(*wanted.equal_tokens) for _ in range(wanted.num_equal)]
    prompts = [wanted.prompt(100 + i, length) for i, length in enumerate(lengths)]
    failures = decode.metric("kv_transfer_failures_total")

    def alone(i: int, again: str = "") -> str:
        return text_of(decode.ask(PATH, body_of(prompts[i], wanted.answer_tokens, f"{transport} alone {i}{again}")))

    def parted(i: int) -> tuple[str, int]:
        answer, _, _ = split(prefill, decode, body_of(prompts[i], wanted.answer_tokens, f"{transport} split {i}"))
        return text_of(answer), answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    with ThreadPoolExecutor(_NUM_AT_ONCE) as pool:
        expected = list(pool.map(alone, range(len(prompts))))
        answers = list(pool.map(parted, range(len(prompts))))
        again = list(pool.map(lambda i: alone(i, " again"), reversed(range(len(prompts)))))[::-1]  # in other company
    return {
        "transport": transport,
        "prompts": len(prompts),
        "prompt_tokens": [min(lengths), max(lengths)],
        "answer_tokens": wanted.answer_tokens,
        "identical": sum(text == its for (text, _), its in zip(answers, expected, strict=True)),
        "identical_of_one_server_twice": sum(text == its for text, its in zip(again, expected, strict=True)),
        "fetched": sum(cached >= length // 16 * 16 - 16 for (_, cached), length in zip(answers, lengths, strict=True)),
        "failed_transfers": decode.metric("kv_transfer_failures_total") - failures,
        "different_words_of_an_answer": statistics.mean(len(set(text.split())) for text in expected),
    }


def time_transfer(wanted: Load, prefill: Server, decode: Server, salt: str) -> dict[str, float]:
    """Bytes a second of a long prompt's blocks, as a client sees them: the whole second request, one token included."""
    rates: list[float] = []
    speeds: list[float] = []
    for number in range(4):
        body = body_of(wanted.prompt(200 + number, wanted.long_tokens), 1, f"{salt} {number}")
        began_s = time.perf_counter()
        _, handle, fetched_s = split(prefill, decode, body)
        rates.append(handle["num_bytes"] / fetched_s)
        speeds.append(wanted.long_tokens / (time.perf_counter() - began_s - fetched_s))
    return {
        "bytes_per_token": handle["num_bytes"] / handle["num_tokens"],
        "bytes_per_s": statistics.median(rates[1:]),
        "prefill_tokens_per_s": statistics.median(speeds[1:]),
    }


def start_exact(where: Path, wanted: Load, devices: Sequence[int | None]) -> list[Server]:
    """Two that compute prompts, one for each transport, and one that answers."""
    first, second = devices[0], devices[-1]
    shm = server("exact-shm", where, {"listen": "shm"}, "float32", wanted, first)
    tcp = server("exact-tcp", where, {"listen": "127.0.0.1:0"}, "float32", wanted, first)
    decode = server("exact-decode", where, {"peers": ["shm", "127.0.0.1"]}, "float32", wanted, second)
    return [shm, tcp, decode]


def compare_exactly(servers: list[Server], wanted: Load, keep: Callable[[Any], None]) -> None:
    """Float32, over each transport."""
    shm, tcp, decode = servers
    found: list[dict[str, Any]] = []
    with running(servers):
        for transport, prefill in (("shm", shm), ("tcp", tcp)):
            found.append(check_equal(wanted, prefill, decode, transport))
            found[-1] |= time_transfer(wanted, prefill, decode, f"{transport} timed")
            print("split, float32:", found[-1], flush=True)
            keep(found)


def gateways(servers: list[Server], costs: dict[str, float]) -> dict[str, Server]:
    """One to servers that are all alike, one to the same servers of which the first half computes prompts for the others."""
    num_prefill = len(servers) // 2
    roles = [{"url": each.url, "role": "prefill" if i < num_prefill else "any"} for i, each in enumerate(servers)]
    measured = {
        "prefill_tokens_per_s": costs["prefill_tokens_per_s"],
        "kv_bytes_per_token": costs["bytes_per_token"],
        "link_bytes_per_s": costs["bytes_per_s"],
    }
    folder = Path(tempfile.mkdtemp(prefix="gateways-"))
    return {
        "aggregated": Server("aggregated", {"replicas": [each.url for each in servers]}, folder, command="gateway"),
        "split": Server("split", {"replicas": roles, "disaggregation": measured}, folder, command="gateway"),
    }


def compare_bursts(servers: list[Server], wanted: Load, dtype: str, keep: Callable[[Any], None]) -> None:
    """The rounds, both ways in each, the other one first in every second."""
    with running(servers):
        costs = time_transfer(wanted, servers[0], servers[-1], "calibration")
        time_transfer(wanted, servers[-1], servers[0], "warm")  # both compute prompts in the other way
        found: dict[str, Any] = {
            "dtype": dtype,
            "transport": "shm",
            "measured": costs,
            "load": str(wanted.burst),
            "rounds": [],
        }
        print("split, costs:", costs, flush=True)
        ways = gateways(servers, costs)
        with running(list(ways.values())):
            for each in ways.values():
                until(lambda each=each: bool(each.ask("/v1/models")["data"]), "the gateway's first probe", 20.0)
            for number in range(-1, wanted.rounds):
                for way in list(ways) if number % 2 else reversed(ways):
                    made = measure(ways[way], wanted, number)
                    if number >= 0:  # the first one warms up
                        found["rounds"].append({"way": way, "round": number, **made})
                        shown = {name: value for name, value in found["rounds"][-1].items() if name != "texts"}
                        print("split, burst:", shown, flush=True)
                compare_texts(found["rounds"], number)
                keep(found)
        found["failed_transfers"] = sum(each.metric("kv_transfer_failures_total") for each in servers)
        keep(found)


def measure(gateway: Server, wanted: Load, number: int) -> dict[str, Any]:
    """One way in one round; what is asked is the same in both."""
    outcomes = ("split", "stayed", "failed")

    def counted() -> list[float]:
        return [gateway.metric("gateway_split_prompts_total", outcome=outcome) for outcome in outcomes]

    before = counted()
    salt = f"{gateway.name} {number}"

    def streams(seed: int, lengths: Sequence[int], num_tokens: int) -> list[dict[str, Any]]:
        prompts = [wanted.prompt(1000 * (number + 2) + seed + i, length) for i, length in enumerate(lengths)]
        return [{**body_of(prompt, num_tokens, salt), "stream": True} for prompt in prompts]

    burst = wanted.burst
    steady = streams(0, [burst.stream_prompt] * burst.streams, burst.stream_tokens)
    made: dict[str, Any] = runner()(
        run_burst(gateway.port, PATH, steady, streams(500, burst.prompts, burst.tokens), burst.lead_s)
    )
    return made | {name: after - its for name, after, its in zip(outcomes, counted(), before, strict=True)}


def compare_texts(rounds: list[dict[str, Any]], number: int) -> None:
    """Puts how far the answers of a round are alike in both ways in place of the answers."""
    pair = [each for each in rounds if each["round"] == number]
    if len(pair) == 2:
        texts = [[text.split() for text in each.pop("texts")] for each in pair]
        alike = [common_beginning(one, other) for one, other in zip(*texts, strict=True)]
        for each in pair:
            each["num_texts"] = len(alike)
            each["identical_texts"] = sum(share == 1.0 for share in alike)
            each["common_beginning"] = statistics.mean(alike)


def common_beginning(one: Sequence[str], other: Sequence[str]) -> float:
    """The share of the words before the first that differs."""
    if one == other:
        return 1.0
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0) / max(len(one), len(other))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="made by multi_llama.py")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--ranks", type=int, required=True, help="GPUs")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--site", type=Path, default=None, help="folder with packages")
    args = parser.parse_args()
    import_sixfold(args.site, ("sources", "llm", "gateway"))
    results = Results(args.out)
    wanted = load(args.tiny, max(1, args.ranks // 2))
    devices = [None, None] if args.tiny else list(range(args.ranks // 2 * 2))
    dtype = "float32" if args.tiny else "bfloat16"

    def guarded(step: str, run: Callable[[Callable[[Any], None]], None]) -> None:
        began_s = time.perf_counter()
        try:
            run(lambda value: results.keep(step, value))
            results.done(step, time.perf_counter() - began_s)
        except Exception as error:  # the other half must not be lost
            traceback.print_exc()
            results.fail(step, f"{type(error).__name__}: {error}")

    if STEPS[0] in args.steps:
        both = {"listen": "shm", "peers": ["shm"]}
        alike = [server(f"server-{i}", args.folder, both, dtype, wanted, device) for i, device in enumerate(devices)]
        guarded(STEPS[0], lambda keep: compare_bursts(alike, wanted, dtype, keep))
    if STEPS[1] in args.steps:
        guarded(STEPS[1], lambda keep: compare_exactly(start_exact(args.folder, wanted, devices), wanted, keep))
    raise SystemExit(1 if results.failures else 0)


if __name__ == "__main__":
    main()
