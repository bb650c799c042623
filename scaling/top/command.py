"""``sixfold top URL``: its arguments; imports nothing heavy."""

from __future__ import annotations

import argparse
import os

from sixfold.core.hookspecs import Command

_KEY_VARIABLE = "SIXFOLD_API_KEY"
_TIMEOUT_S = 5.0


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="address of a server or gateway, such as http://127.0.0.1:8000")
    parser.add_argument("--interval", type=_positive, default=2.0, help="seconds between two looks (2)")
    parser.add_argument("--once", action="store_true", help="print one frame and end, for scripts")
    parser.add_argument(
        "--key",
        default=os.environ.get(_KEY_VARIABLE),
        help=f"API key, where metrics need one; {_KEY_VARIABLE} unless given",
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0.05 to 3600")
    return value


def _run(args: argparse.Namespace) -> int:
    from sixfold.scaling.top.loop import run_top
    from sixfold.scaling.top.scrape import Scrape, fetch

    def look() -> Scrape:
        return fetch(args.url, key=args.key, timeout_s=_TIMEOUT_S)

    return run_top(look, url=args.url, interval_s=args.interval, once=args.once)


COMMAND = Command(name="top", summary="Show what a server or gateway is doing now.", configure=_configure, run=_run)
