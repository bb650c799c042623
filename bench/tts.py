"""Speech: time to the first sound and real-time factor over HTTP, Sixfold beside the plain synthesiser, in one run.

``python bench/tts.py [--rounds 2] [--model FOLDER]``; bench/README.md tells the method.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import report
import uvloop
from report import Sample
from servers import OtherLoad, RunningServer, Target
from targets import BENCH, OFFLINE, PEERS, SIXFOLD, work_folder

from sixfold.core.benchmark.client import Answer, Connection

VOICE = "jm_kumo"
RATE_HZ = 24_000
CONCURRENCIES = (1, 4)
PLAIN = "plain, one request at a time"
TEXTS = (
    "Good morning, and welcome to the clinic. Please take a seat in the waiting room. The nurse will call your name.",
    "The museum opens at nine. It closes at five in the afternoon. On Sundays it stays open until late in the evening.",
    "Wash your hands before eating. Take two tablets after breakfast. Drink a glass of water with each of them.",
    "The train to the coast leaves at noon. It stops in every village. You will be at the harbour before sunset.",
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds; tables show medians (default 2)")
    parser.add_argument("--model", type=Path, help="model folder instead of the demo's")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(143))
    lock = (work_folder() / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("Another run of a benchmark is under way: they would measure each other. Wait for it to end.")
    started_s = time.monotonic()
    model = args.model or pull_demo_model()
    facts: dict[str, object] = {**report.machine(), "arguments": sys.argv[1:]}
    samples = uvloop.run(run(model, args.rounds))
    facts["seconds"] = round(time.monotonic() - started_s)
    lines = [
        "# Speech: Sixfold beside the plain synthesiser",
        "",
        *(f"- {k}: {v}" for k, v in facts.items()),
        *table(samples),
    ]
    print("\n".join(lines))
    print(f"\nwritten: {report.write(BENCH / 'results', facts, samples, lines, name='tts')}")


def pull_demo_model() -> Path:
    """The demo's speech model, downloaded when missing."""
    import yaml

    data = yaml.safe_load((BENCH.parent / "examples" / "demo.yaml").read_text())
    config = work_folder() / "tts-pull.yaml"
    config.write_text(yaml.safe_dump({"models": {"speak": data["models"]["speak"]}}))
    output = subprocess.run([SIXFOLD, "pull", str(config)], check=True, stdout=subprocess.PIPE, text=True).stdout
    (line,) = (line for line in output.splitlines() if line.startswith("speak: "))
    return Path(line.removeprefix("speak: ").rpartition(" (")[0])


def targets(model: Path) -> dict[str, Target]:
    config = work_folder() / "tts.yaml"
    config.write_text(json.dumps({"models": {"speak": {"source": f"file:{model.resolve()}"}}}))
    return {
        "Sixfold": Target(
            name="sixfold-tts",
            command=lambda port: [str(SIXFOLD), "serve", str(config), "--port", str(port), "--log-level", "warning"],
            env=OFFLINE,
            ready_path="/ready",
            pausable=False,
        ),
        PLAIN: Target(
            name="plain-speech",
            command=lambda port: [sys.executable, str(PEERS / "plain_speech.py"), str(model), "--port", str(port)],
            env=OFFLINE,
            ready_path="/health",
        ),
    }


async def run(model: Path, rounds: int) -> list[Sample]:
    samples: list[Sample] = []
    with running(targets(model)) as servers:
        for server in servers.values():
            with active(server):
                await measure(server, 1, TEXTS[:1])
        for round_index in range(rounds):
            order = list(servers.items())
            order = order[round_index % 2 :] + order[: round_index % 2]
            for in_flight in CONCURRENCIES:
                for name, server in order:
                    with active(server):
                        other = OtherLoad(server)
                        values = await measure(server, in_flight, TEXTS[: 2 if in_flight == 1 else 4])
                        values["other_load"] = other.share()
                    print(f"[round {round_index + 1}, {in_flight} in flight] {name}: {values}", flush=True)
                    samples.append(
                        Sample(
                            suite="tts",
                            workload=f"{in_flight} in flight",
                            row=name,
                            dtype="int8",
                            round=round_index,
                            values=values,
                        )
                    )
    return samples


async def measure(server: RunningServer, in_flight: int, texts: Sequence[str]) -> dict[str, float]:
    """Each text once; a new request starts when one of ``in_flight`` has ended."""
    waiting = list(texts)
    answers: list[Answer] = []

    async def client() -> None:
        connection = await Connection.open(server.port)
        while waiting:
            body = {"model": "speak", "input": waiting.pop(0), "voice": VOICE, "response_format": "pcm"}
            answers.append(await connection.request("POST", "/v1/audio/speech", json.dumps(body).encode()))
        connection.close()

    started_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(in_flight)))
    wall_s = time.perf_counter() - started_s
    audio_s = 0.0
    for answer in answers:
        if answer.status != 200 or len(answer.body) < RATE_HZ:
            raise RuntimeError(f"status {answer.status}: {answer.body[:300]!r}")
        audio_s += len(answer.body) / 2 / RATE_HZ
    first_s = [answer.parts[0][0] - answer.started_s for answer in answers]
    return {
        "first_sound_s": statistics.median(first_s),
        "worst_first_sound_s": max(first_s),
        "rtf": wall_s / audio_s,
        "audio_s": audio_s,
    }


@contextlib.contextmanager
def running(wanted: dict[str, Target]) -> Iterator[dict[str, RunningServer]]:
    servers: dict[str, RunningServer] = {}
    with contextlib.ExitStack() as stack:
        for name, target in wanted.items():
            servers[name] = stack.enter_context(RunningServer(target, work_folder() / "logs"))
            print(f"{name} is ready after {servers[name].wait_ready():.0f} s", flush=True)
            servers[name].pause()
        yield servers


@contextlib.contextmanager
def active(server: RunningServer) -> Iterator[None]:
    server.resume()
    yield
    server.pause()


def table(samples: Sequence[Sample]) -> list[str]:
    lines: list[str] = []
    for in_flight in CONCURRENCIES:
        mine = [one for one in samples if one.workload == f"{in_flight} in flight"]
        lines += [
            "",
            f"## {in_flight} in flight",
            "",
            "| server | first sound s | worst first sound s | real-time factor | other load |",
        ]
        lines.append("|---|---|---|---|---|")
        for name in dict.fromkeys(one.row for one in mine):
            row = [one.values for one in mine if one.row == name]
            cells = [
                statistics.median(v[key] for v in row)
                for key in ("first_sound_s", "worst_first_sound_s", "rtf", "other_load")
            ]
            lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
        for key, text in (("first_sound_s", "first sound"), ("rtf", "real-time factor")):
            ratios = [
                next(p.values[key] for p in mine if p.row == PLAIN and p.round == one.round) / one.values[key]
                for one in mine
                if one.row == "Sixfold"
            ]
            lines.append(
                f"\nPlain over Sixfold, {text}: {statistics.median(ratios):.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})"
            )
    return lines


if __name__ == "__main__":
    assert os.name == "posix", "servers are paused by signals"
    main()
