"""Runs what ``sixfold bench`` was asked for, and writes it down."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from sixfold.core.benchmark.client import Address
from sixfold.core.benchmark.dataset import draw_samples, read_samples
from sixfold.core.benchmark.plot import draw_distributions
from sixfold.core.benchmark.report import make_report, report_lines
from sixfold.core.benchmark.session import Load, Measured, measure
from sixfold.core.benchmark.target import Target
from sixfold.core.benchmark.workload import Sample, Workload
from sixfold.core.errors import UsageError

_CONCURRENCY = 8


def run_bench(workload: Workload, args: argparse.Namespace) -> int:
    """See `sixfold.core.benchmark.command.run`."""
    import asyncio

    from sixfold.core.serving.lifecycle import new_event_loop

    headers = {} if args.key is None else {"Authorization": f"Bearer {args.key}"}
    models: list[str | None] = list(args.model) if args.model else [None]
    targets = [
        Target(
            Address.of(url, headers),
            workload,
            model=models[index % len(models)],
            extra=args.extra_body,
            timeout_s=args.timeout,
        )
        for index, url in enumerate(args.urls)
    ]
    load = Load(rate_per_s=args.rate, concurrency=None if args.rate else args.concurrency or _CONCURRENCY)
    samples = _samples(args)

    async def run() -> list[Measured]:
        try:
            return await measure(
                targets, samples, load, num_rounds=args.rounds, num_warm_up=args.warm_up, seed=args.seed
            )
        finally:
            for target in targets:
                target.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        measured = dict(zip(_names(args.urls), runner.run(run()), strict=True))
    settings = {
        "workload": workload.name,
        "rate": load.rate_per_s,
        "concurrency": load.concurrency,
        "requests": len(samples),
        "rounds": args.rounds,
        "input_tokens": f"{args.input_tokens.low}:{args.input_tokens.high}",
        "output_tokens": f"{args.output_tokens.low}:{args.output_tokens.high}",
        "dataset": None if args.dataset is None else str(args.dataset),
        "seed": args.seed,
    }
    report = make_report(settings, measured, args.slo)
    print("\n".join(report_lines(report)))
    if args.json_path is not None:
        _write(args.json_path, msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n")
    if args.plot is not None:
        _write(args.plot, draw_distributions({name: each.outcomes for name, each in measured.items()}))
    return 0 if all(summary.num_failed < summary.num_requests for summary in report.servers.values()) else 1


def _names(urls: list[str]) -> list[str]:
    """The addresses; twice the same one, which shows how much runs differ by themselves, gets a number."""
    return [url if url not in urls[:index] else f"{url} (again)" for index, url in enumerate(urls)]


def _samples(args: argparse.Namespace) -> list[Sample]:
    if args.dataset is None:
        return draw_samples(
            args.requests,
            input_tokens=args.input_tokens,
            output_tokens=args.output_tokens,
            shared_prefix_tokens=args.shared_prefix_tokens,
            seed=args.seed,
        )
    found = read_samples(args.dataset, default_output_tokens=args.output_tokens.high)
    return [found[index % len(found)] for index in range(args.requests)]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}.") from error
