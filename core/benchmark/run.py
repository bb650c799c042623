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
_WARM_UP_EDITION = 2


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
    warm_up = _drawn(args, args.warm_up, _WARM_UP_EDITION)

    async def run() -> list[Measured]:
        try:
            return await measure(targets, samples, warm_up, load, num_rounds=args.rounds, seed=args.seed)
        finally:
            for target in targets:
                target.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        measured = dict(zip(_names(args.urls), runner.run(run()), strict=True))
    settings = {
        "workload": workload.name,
        "rate": load.rate_per_s,
        "concurrency": load.concurrency,
        "requests": len(samples[0]),
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


def _samples(args: argparse.Namespace) -> list[list[Sample]]:
    """What each address is asked. One that is given twice gets other texts of the same lengths the second time: the first ones
    are in its prefix cache by then.

    Raises:
        UsageError: The data set can't be read, or its lines do not suffice for one address that is given twice.
    """
    is_pair = len(args.urls) == 2 and args.urls[0].rstrip("/") == args.urls[1].rstrip("/")
    if args.dataset is None:
        return [_drawn(args, args.requests, index if is_pair else 0) for index in range(len(args.urls))]
    found = read_samples(args.dataset, default_output_tokens=args.output_tokens.high)
    if not is_pair:
        return [[found[index % len(found)] for index in range(args.requests)]] * len(args.urls)
    if len(found) < 2 * args.requests:
        raise UsageError(
            f"--dataset {args.dataset} has {len(found)} lines. One address given twice needs two for each request, since"
            f" what it has been asked may be in its cache: at most --requests {len(found) // 2}."
        )
    # In turns, so that both halves are as long where a file is sorted by length.
    return [found[0 : 2 * args.requests : 2], found[1 : 2 * args.requests : 2]]


def _drawn(args: argparse.Namespace, count: int, edition: int) -> list[Sample]:
    return draw_samples(
        count,
        input_tokens=args.input_tokens,
        output_tokens=args.output_tokens,
        shared_prefix_tokens=args.shared_prefix_tokens,
        seed=args.seed,
        edition=edition,
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}.") from error
