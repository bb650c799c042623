"""``sixfold bench URL [URL2]``: its arguments; what it needs is loaded when it runs."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from sixfold.core.benchmark.dataset import Length
from sixfold.core.benchmark.slo import Slo
from sixfold.core.errors import UsageError
from sixfold.core.plugins import Plugins

KEY_VARIABLE = "SIXFOLD_API_KEY"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("urls", nargs="+", metavar="URL", help="one or two OpenAI-compatible servers to load, in turns")
    parser.add_argument(
        "--workload", default="chat", help="what is asked: chat, completions, embeddings, ... (%(default)s)"
    )
    parser.add_argument(
        "--model", action="append", help="the model's name, once or for each server; its first unless given"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--rate", type=_positive, help="open loop: requests a second, Poisson arrivals")
    how.add_argument("--concurrency", type=_count, help="closed loop: requests under way (8)")
    parser.add_argument("--requests", type=_count, default=100, help="requests to each server in all (%(default)s)")
    parser.add_argument(
        "--rounds", type=_count, default=3, help="parts that they are sent in, servers in turns (%(default)s)"
    )
    parser.add_argument("--warm-up", type=_natural, default=8, help="requests before, which do not count (%(default)s)")
    parser.add_argument("--input-tokens", type=_length, default=Length(128, 128), help="N, or a range N:M (128)")
    parser.add_argument("--output-tokens", type=_length, default=Length(64, 64), help="N, or a range N:M (64)")
    parser.add_argument("--shared-prefix-tokens", type=_natural, default=0, help="beginning that all texts share (0)")
    parser.add_argument("--dataset", type=Path, help="JSONL in place of drawn texts; each line a text, or a whole body")
    parser.add_argument("--extra-body", type=_object, default={}, help="JSON object whose fields each body gets, too")
    parser.add_argument("--slo", type=_slo, help="what counts as good: some of ttft=S,itl=S,e2e=S in seconds")
    parser.add_argument(
        "--timeout", type=_positive, default=600.0, help="seconds after which a request failed (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of texts, lengths and arrivals (%(default)s)")
    parser.add_argument("--key", default=os.environ.get(KEY_VARIABLE), help=f"API key; {KEY_VARIABLE} unless given")
    parser.add_argument("--json", type=Path, dest="json_path", metavar="FILE", help="write all figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw how latencies are distributed")


def run(plugins: Plugins, args: argparse.Namespace) -> int:
    """Loads the servers and prints what came of it; 1 if no request succeeded.

    Raises:
        UsageError: The arguments make no sense, or a server can't be reached at all.
    """
    from sixfold.core.benchmark.run import run_bench

    workload = plugins.workloads.get(args.workload)
    if workload is None:
        known = ", ".join(sorted(plugins.workloads)) or "none: no plugin brings one"
        raise UsageError(f"--workload {args.workload}: there is no such workload. Known: {known}.")
    if len(args.urls) > 2:
        raise UsageError("sixfold bench compares two servers at most. Give one or two addresses.")
    if args.model is not None and len(args.model) not in (1, len(args.urls)):
        raise UsageError("--model: give it once, or once for each server.")
    if args.requests < args.rounds:
        raise UsageError(
            f"--requests {args.requests} are fewer than --rounds {args.rounds}. Each round needs one at least."
        )
    return run_bench(workload, args)


def _checked(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _length(text: str) -> Length:
    found: Length = _checked(Length.parse, text)
    return found


def _slo(text: str) -> Slo:
    found: Slo = _checked(Slo.parse, text)
    return found


def _object(text: str) -> dict[str, Any]:
    found = _checked(json.loads, text)
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object")
    return cast(dict[str, Any], found)
