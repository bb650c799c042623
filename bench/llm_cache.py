"""What the prefix cache and the guessed tokens save: a chat of ten turns, and a file that is typed on.

Three replicas of one model on one server: everything on (the default), only the cache, and neither. Each request goes to all
three, another one first each time, so that a ratio is one of neighbours in time.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
import uvloop
from report import Sample
from servers import OtherLoad, RunningServer, Target
from targets import BENCH, OFFLINE, SIXFOLD, WORK, pull_demo_models, work_folder

from sixfold.core.benchmark.client import Answer, Connection

FULL, CACHE, NEITHER = "cache and guesses", "cache", "neither"
OPTIONS: Mapping[str, dict[str, object]] = {
    FULL: {},
    CACHE: {"speculation": {"method": "off"}},
    NEITHER: {"speculation": {"method": "off"}, "prefix_cache": "off"},
}
NUM_TURNS = 10
ANSWER_TOKENS = 32
COMPLETION_TOKENS = 24
KEYSTROKES = 24
"""Characters typed between two completions."""

SYSTEM = (
    "You help families to plan short journeys. You know the railways, the weather and the prices of the region well. You ask "
    "when something important is missing, you never invent opening hours, and you answer in plain words without headings."
)
QUESTIONS = (
    "I would like to plan a long weekend in a town by the sea. Which three things should I decide first?",
    "We are two adults and a child of six years who likes animals. What could we do on the first day?",
    "It may rain on the second day. Please suggest two places under a roof and say how long each takes.",
    "How should we travel between these places if we do not want to take the car at all?",
    "We have four hundred euros for the three days. How would you divide them over meals, tickets and sleep?",
    "One of us does not eat meat. Which dishes of that region should we try, and which should we avoid?",
    "Which clothes and which small things are easily forgotten when one packs for such a journey?",
    "Write down the plan for the first day hour by hour, as a short list that fits on a card.",
    "Now do the same for the second day, with something that can be left out if we are tired.",
    "Last, which sentence could I write on a postcard to my parents from there?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One streamed answer."""

    text: str
    ttft_s: float
    total_s: float
    num_cached_tokens: int
    num_prompt_tokens: int


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"), help="default both")
    parser.add_argument("--chats", type=int, default=3, help="conversations of ten turns (default 3), 0 for none")
    parser.add_argument("--completions", type=int, default=30, help="requests while a file is typed (default 30)")
    parser.add_argument("--start", type=int, default=2000, help="characters of the file at the first (default 2000)")
    parser.add_argument("--chat-path", type=Path, help="model folder instead of the demo model")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Servers are in sessions of their own, so nothing but this process ends them: SIGTERM must unwind as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(143))
    work_folder()
    model = args.chat_path or pull_demo_models(BENCH.parent / "examples" / "demo.yaml")["chat"]
    facts: dict[str, object] = {**report.machine(), "chats": args.chats, "completions": args.completions}
    samples: list[Sample] = []
    lines = ["# Prefix cache and guessed tokens", "", *(f"- {name}: {value}" for name, value in facts.items())]
    for dtype in args.dtype or ("float32", "bfloat16"):
        with RunningServer(target(model, dtype), WORK) as server:
            server.wait_ready()
            load = OtherLoad(server)
            samples += uvloop.run(run(server, dtype, args))
            lines += ["", f"Other load with {dtype}: {load.share():.2f}"]
            lines += speculation_lines(server, dtype)
        every = [*lines, *(chat_lines(samples) if args.chats else ()), *completion_lines(samples)]
        written = report.write(BENCH / "results", facts, samples, every, name="llm-cache")  # what is measured stays
        print("\n".join(every), f"\n\nwritten: {written}", flush=True)


def target(model: Path, dtype: str) -> Target:
    """One server with the three replicas."""
    config = WORK / f"llm-cache-{dtype}.yaml"
    models = {
        name: {"source": f"file:{model.resolve()}", "options": {"dtype": dtype, **options}}
        for name, options in OPTIONS.items()
    }
    config.write_text(json.dumps({"models": {key.replace(" ", "-"): value for key, value in models.items()}}))
    return Target(
        name=f"llm-cache-{dtype}",
        command=lambda port: [str(SIXFOLD), "serve", str(config), "--port", str(port), "--log-level", "warning"],
        env=OFFLINE,
        ready_path="/ready",
        pausable=False,
    )


async def run(server: RunningServer, dtype: str, args: argparse.Namespace) -> list[Sample]:
    """Both workloads, after a request to warm each replica."""
    connection = await Connection.open(server.port)
    for name in OPTIONS:
        await complete(connection, name, "def warm_up():\n    return 1\n", 8)
    samples = [s for number in range(args.chats) for s in await chat(connection, dtype, number)]
    samples += await type_on(connection, dtype, args.start, args.completions)
    connection.close()
    return samples


async def chat(connection: Connection, dtype: str, number: int) -> list[Sample]:
    """One conversation of ten turns with each replica, turn by turn."""
    # The number comes first, so that nothing is shared with other conversations.
    opening = {"role": "system", "content": f"Conversation {number} of {dtype}. {SYSTEM}"}
    messages = {name: [opening] for name in OPTIONS}
    samples: list[Sample] = []
    for turn, question in enumerate(QUESTIONS):
        for name in in_turns(number + turn):
            messages[name].append({"role": "user", "content": question})
            reply = await ask(
                connection,
                "/v1/chat/completions",
                {
                    "model": name.replace(" ", "-"),
                    "messages": messages[name],
                    "temperature": 0.8,
                    "seed": number,
                    "max_tokens": ANSWER_TOKENS,
                    "ignore_eos": True,
                },
            )
            messages[name].append({"role": "assistant", "content": reply.text})
            samples.append(sample("chat", name, dtype, number * NUM_TURNS + turn, reply))
    return samples


async def type_on(connection: Connection, dtype: str, start: int, count: int) -> list[Sample]:
    """Completes a source file of this project at every few characters, as an editor does.

    Raises:
        RuntimeError: In float32 the replicas' texts differ.
    """
    source = (BENCH.parent / "core" / "batching" / "scheduler.py").read_text()
    samples: list[Sample] = []
    for place in range(count):
        texts: dict[str, str] = {}
        for name in in_turns(place):
            prefix = source[: start + place * KEYSTROKES]
            reply = await complete(connection, name, prefix, COMPLETION_TOKENS)
            texts[name] = reply.text
            samples.append(sample("code", name, dtype, place, reply))
        if dtype == "float32" and len(set(texts.values())) != 1:
            raise RuntimeError(f"the texts differ at {start + place * KEYSTROKES} characters: {texts}")
    return samples


async def complete(connection: Connection, name: str, prompt: str, max_tokens: int) -> Reply:
    body = {"model": name.replace(" ", "-"), "prompt": prompt, "temperature": 0, "max_tokens": max_tokens}
    return await ask(connection, "/v1/completions", body)


async def ask(connection: Connection, path: str, body: Mapping[str, object]) -> Reply:
    """Streams one answer.

    Raises:
        RuntimeError: It is not 200, or failed on the way.
    """
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    answer = await connection.request("POST", path, json.dumps({**body, **stream}).encode())
    if answer.status != 200:
        raise RuntimeError(f"{path} answered {answer.status}: {answer.body[:500]!r}")
    return read(answer)


def read(answer: Answer) -> Reply:
    """Text, times and usage of a finished stream."""
    text, first_s, pending, usage = "", 0.0, b"", dict[str, Any]()
    for at_s, part in answer.parts:
        *events, pending = (pending + part).split(b"\n\n")
        for event in events:
            if not event.startswith(b"data: {"):
                continue
            data = json.loads(event[6:])
            if "error" in data:
                raise RuntimeError(f"the stream failed: {data}")
            usage = data.get("usage") or usage
            for choice in data["choices"]:
                piece = choice["delta"].get("content") if "delta" in choice else choice["text"]
                if piece:
                    first_s = first_s or at_s
                    text += piece
    return Reply(
        text=text,
        ttft_s=(first_s or answer.ended_s) - answer.started_s,
        total_s=answer.ended_s - answer.started_s,
        num_cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
        num_prompt_tokens=usage["prompt_tokens"],
    )


def in_turns(place: int) -> list[str]:
    """The replicas, another one first each time."""
    names = list(OPTIONS)
    first = place % len(names)
    return names[first:] + names[:first]


def sample(workload: str, name: str, dtype: str, place: int, reply: Reply) -> Sample:
    values = {
        "ttft_ms": reply.ttft_s * 1000,
        "total_ms": reply.total_s * 1000,
        "cached_tokens": reply.num_cached_tokens,
        "prompt_tokens": reply.num_prompt_tokens,
    }
    return Sample(suite="llm-cache", workload=workload, row=name, dtype=dtype, round=place, values=values)


def chosen(samples: Sequence[Sample], workload: str, name: str, dtype: str) -> list[Sample]:
    return [s for s in samples if (s.workload, s.row, s.dtype) == (workload, name, dtype)]


def chat_lines(samples: Sequence[Sample]) -> list[str]:
    """Time to the first token by turn, and what guesses do to the rest of a plain chat."""
    lines = ["", "## Chat of ten turns", "", "| weights | replica | prompt tokens 1, 10 | cached 10 |"]
    lines[-1] += " TTFT ms 1, 5, 10 | turn 10 / turn 1 | after first token, of that without guesses |"
    lines.append("|---" * 7 + "|")
    for dtype in dict.fromkeys(s.dtype for s in samples):
        for name in OPTIONS:
            mine = chosen(samples, "chat", name, dtype)
            by_turn = [[s for s in mine if s.round % NUM_TURNS == turn] for turn in range(NUM_TURNS)]
            ttft = [statistics.median(s.values["ttft_ms"] for s in turn) for turn in by_turn]
            ratio = statistics.median(
                b.values["ttft_ms"] / a.values["ttft_ms"] for a, b in zip(by_turn[0], by_turn[-1], strict=True)
            )
            base = chosen(samples, "chat", CACHE, dtype)
            rest = statistics.median(
                rest_ms(a) / rest_ms(b) for a, b in zip(mine, sorted_like(base, mine), strict=True)
            )
            first, last = (turn[0].values for turn in (by_turn[0], by_turn[-1]))
            lines.append(
                f"| {dtype} | {name} | {first['prompt_tokens']}, {last['prompt_tokens']} | {last['cached_tokens']} | "
                f"{ttft[0]:.0f}, {ttft[4]:.0f}, {ttft[9]:.0f} | {ratio:.2f} | {rest:.2f} |"
            )
    return lines


def rest_ms(one: Sample) -> float:
    return one.values["total_ms"] - one.values["ttft_ms"]


def sorted_like(samples: Sequence[Sample], others: Sequence[Sample]) -> list[Sample]:
    by_round = {s.round: s for s in samples}
    return [by_round[s.round] for s in others]


def completion_lines(samples: Sequence[Sample]) -> list[str]:
    """End to end, over all requests and request by request."""
    lines = ["", "## A file that is typed on", "", "| weights | replica | seconds in all | faster than neither |"]
    lines[-1] += " median of ratios |"
    lines.append("|---" * 5 + "|")
    for dtype in dict.fromkeys(s.dtype for s in samples):
        base = chosen(samples, "code", NEITHER, dtype)
        for name in OPTIONS:
            mine = chosen(samples, "code", name, dtype)
            total_s, base_s = (sum(s.values["total_ms"] for s in each) / 1000 for each in (mine, base))
            ratios = [
                b.values["total_ms"] / a.values["total_ms"] for a, b in zip(mine, sorted_like(base, mine), strict=True)
            ]
            lines.append(
                f"| {dtype} | {name} | {total_s:.1f} | {base_s / total_s:.2f} | {statistics.median(ratios):.2f} |"
            )
    return lines


def speculation_lines(server: RunningServer, dtype: str) -> list[str]:
    """How many guesses were right, from the server's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as response:
        text = response.read().decode()
    found = {
        line.split("{")[0].removeprefix("sixfold:spec_decode_num_"): float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("sixfold:spec_decode_num_") and f'model_name="{FULL.replace(" ", "-")}"' in line
    }
    return [
        f"Guesses with {dtype}: {found['accepted_tokens_total']:.0f} of {found['draft_tokens_total']:.0f} right, "
        f"in {found['drafts_total']:.0f} steps."
    ]


if __name__ == "__main__":
    started_s = time.monotonic()
    main()
    print(f"took {time.monotonic() - started_s:.0f} s")
