"""Runs measurements one after another, each under a time limit of its own; one that fails keeps no other from running.

    python bench/gpu/session.py --seconds 560 90 'embedding.py --shapes qwen3-0.6b' 150 'asr.py' ...

Each pair is a limit in seconds and a command: a script of this folder with its arguments. What they print goes to ``log.txt``
in the folder that ``OUT`` names, where their figures go, too; the end of it is printed here. What no time is left for is named.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
_LEAST_S = 15.0  # less is not worth a start
_SHOWN_CHARACTERS = 2200  # of each, so that all of them fit where the last 12,000 are kept


def run(command: str, limit_s: float, log_path: Path) -> str:
    """Runs one, prints the end of what it said, and says how it went."""
    script, *arguments = shlex.split(command)
    began_s = time.monotonic()
    with log_path.open("a") as log:
        log.write(f"\n=== {command}\n")
        log.flush()
        at = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-u", str(HERE / script), *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts is ended with it
        )
        try:
            outcome = f"ended with {process.wait(limit_s)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            outcome = "cut off"
    said = log_path.read_bytes()[at:].decode(errors="replace")
    outcome = f"{command}: {outcome} after {time.monotonic() - began_s:.0f} s"
    print(f"{said[-_SHOWN_CHARACTERS:]}\n=== {outcome}", flush=True)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, required=True, help="of all together")
    parser.add_argument("pairs", nargs="+", metavar="SECONDS COMMAND")
    args = parser.parse_args()
    if len(args.pairs) % 2:
        parser.error("give a limit in seconds before each command")
    out = Path(os.environ.get("OUT", "."))
    out.mkdir(parents=True, exist_ok=True)
    ends_s = time.monotonic() + args.seconds
    outcomes: list[str] = []
    for limit, command in zip(args.pairs[::2], args.pairs[1::2], strict=True):
        left_s = min(float(limit), ends_s - time.monotonic())
        outcomes.append(f"{command}: no time was left" if left_s < _LEAST_S else run(command, left_s, out / "log.txt"))
    print("\n".join(["", *outcomes]), flush=True)


if __name__ == "__main__":
    main()
