"""Reranking beside sentence-transformers' CrossEncoder on LitServe: `python bench/rerank.py`, about two minutes.

The model has the size of MiniLM-L6 and random weights: no real cross-encoder can be had without the Hugging Face hub. A
request is one query with 16 documents; 8 requests are in flight. The method is that of bench/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import report
import uvloop
from load import Call, Run, percentile, run_closed_loop
from report import Sample
from servers import OtherLoad, RunningServer, Target
from targets import BENCH, OFFLINE, PEERS, Row, pull_demo_models, sixfold, work_folder

IN_FLIGHT = 8
DOCUMENTS_A_REQUEST = 16
WORKLOAD = f"1 query and {DOCUMENTS_A_REQUEST} documents a request, {IN_FLIGHT} in flight"
COLUMNS = {"pairs_per_s": "pairs/s", "p50_ms": "p50 ms", "p95_ms": "p95 ms", "other_load": "other load"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; the table shows medians (default 3)")
    parser.add_argument("--min-s", type=float, default=4.0, help="least seconds of a measurement (default 4)")
    parser.add_argument("--tokenizer-path", type=Path, help="MiniLM's folder instead of the demo model")
    args = parser.parse_args()
    facts: dict[str, object] = {**report.machine(), "arguments": sys.argv[1:], "workload": WORKLOAD}
    source = args.tokenizer_path or pull_demo_models(BENCH.parent / "examples" / "demo.yaml")["embed"]
    samples = uvloop.run(run(rows(random_model(source)), args.rounds, args.min_s))
    is_base = (samples[-1].row, "float32")
    ratios = {"of LitServe": ("pairs_per_s", lambda sample: (sample.row, sample.dtype) == is_base)}
    lines = ["# Reranking", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += report.table(samples, COLUMNS, ratios)
    print("\n".join(lines))
    path = report.write(BENCH / "results", facts, samples, lines)
    for suffix in (".md", ".json"):
        path.with_suffix(suffix).rename(path.with_name(path.stem.replace("-quick", "-rerank") + suffix))


def random_model(source: Path) -> Path:
    """A cross-encoder of MiniLM-L6's size with its tokenizer, written once."""
    folder = work_folder() / "random-cross-encoder"
    if (folder / "model.safetensors").is_file():
        return folder
    os.environ.update(OFFLINE)
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(7)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=1
    )
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def rows(model: Path) -> tuple[Row, ...]:
    """Sixfold in both types, then LitServe in both."""
    dtypes = ("float32", "bfloat16")
    ours = sixfold("sixfold-rerank", model, dtypes)
    found = [Row(name="Sixfold", target=ours, model=dtype, path="/v1/rerank", dtype=dtype) for dtype in dtypes]
    for dtype in dtypes:
        peer = [sys.executable, str(PEERS / "litserve_rerank.py"), str(model), "--dtype", dtype, "--port"]
        target = Target(
            name=f"litserve-rerank-{dtype}",
            command=lambda port, peer=peer: [*peer, str(port)],
            env=OFFLINE,
            ready_path="/health",
        )
        found.append(
            Row(name="CrossEncoder on LitServe", target=target, model="rerank", path="/v1/rerank", dtype=dtype)
        )
    return tuple(found)


async def run(rows: Sequence[Row], num_rounds: int, min_s: float) -> list[Sample]:
    """Every row in every round, another one first each time; peers that wait are stopped."""
    texts = [text for text, _num_tokens in json.loads((BENCH / "data" / "embedding_texts.json").read_text())]
    samples: list[Sample] = []
    with contextlib.ExitStack() as stack:
        servers = {
            target.name: stack.enter_context(RunningServer(target, work_folder() / "logs"))
            for target in {row.target.name: row.target for row in rows}.values()
        }
        for server in servers.values():
            server.wait_ready()
        for row in rows:
            await measure(servers[row.target.name], row, texts, min_s=0.5)
        for server in servers.values():
            server.pause()
        for number in range(num_rounds):
            shift = number % len(rows)
            for row in (*rows[shift:], *rows[:shift]):
                server = servers[row.target.name]
                server.resume()
                load = OtherLoad(server)
                values = await measure(server, row, texts, min_s=min_s)
                values["other_load"] = load.share()
                server.pause()
                samples.append(
                    Sample(
                        suite="rerank", workload=WORKLOAD, row=row.name, dtype=row.dtype, round=number, values=values
                    )
                )
                print(f"round {number + 1}: {row.name} {row.dtype}: {values['pairs_per_s']:.0f} pairs/s", flush=True)
    order = [(row.name, row.dtype) for row in rows]
    return sorted(samples, key=lambda sample: (order.index((sample.row, sample.dtype)), sample.round))


async def measure(server: RunningServer, row: Row, texts: Sequence[str], *, min_s: float) -> dict[str, float]:
    """One closed-loop run of at least ``min_s`` seconds."""
    finished = await run_closed_loop(
        server.port, row.path, calls(texts, row), in_flight=IN_FLIGHT, min_calls=IN_FLIGHT, min_s=min_s
    )
    check(finished, row)
    latencies_s = [answer.ended_s - answer.started_s for _call, answer in finished.answers]
    return {
        "num_requests": len(finished.answers),
        "pairs_per_s": sum(call.num_texts for call, _answer in finished.answers) / finished.elapsed_s,
        "p50_ms": percentile(latencies_s, 0.5) * 1000,
        "p95_ms": percentile(latencies_s, 0.95) * 1000,
    }


def calls(texts: Sequence[str], row: Row) -> Iterator[Call]:
    """The same requests in the same order, over and over; long texts are cut, so that all servers do the same work."""
    short = [text[:1200] for text in texts]
    made: list[Call] = []
    for start in range(0, len(short) - DOCUMENTS_A_REQUEST, DOCUMENTS_A_REQUEST + 1):
        query, *documents = short[start : start + DOCUMENTS_A_REQUEST + 1]
        body = {"model": row.model, "query": query[:80], "documents": documents}
        made.append(Call(body=json.dumps(body).encode(), num_texts=DOCUMENTS_A_REQUEST, num_tokens=0))
    return itertools.cycle(made)


def check(finished: Run, row: Row) -> None:
    """Each answer ranks every document once.

    Raises:
        RuntimeError: It does not.
    """
    for call, answer in finished.answers:
        results = json.loads(answer.body)["results"]
        scores = [result["relevance_score"] for result in results]
        if len({result["index"] for result in results}) != call.num_texts or scores != sorted(scores, reverse=True):
            raise RuntimeError(f"{row.name}: a wrong ranking of {call.num_texts} documents: {answer.body[:300]!r}")


if __name__ == "__main__":
    main()
