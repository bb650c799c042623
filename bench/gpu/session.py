"""Runs a list of measurements one after another, each under a time limit of its own; one that fails does not keep the next from running.

    python bench/gpu/session.py --seconds 560 --out FOLDER 90 'embedding.py --shapes qwen3-0.6b' 150 'asr.py' ...

Each pair is a limit in seconds and a command, a script of this folder with its arguments. What each prints goes to this output and to
one file ``log.txt``; figures go where ``OUT`` points, which is FOLDER. A command that no time is left for is named and left out.
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
from typing import IO

HERE = Path(__file__).parent
_LEAST_S = 15.0  # less is not worth a start


def run(command: str, limit_s: float, log: IO[str]) -> str:
    """Runs one; says how it went."""
    script, *arguments = shlex.split(command)
    began_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-u", str(HERE / script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what it starts can be ended with it
    )
    ends_s = began_s + limit_s
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    while process.poll() is None and time.monotonic() < ends_s:
        _pass_on(process.stdout, log)
        time.sleep(0.2)
    ended = process.poll()
    if ended is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _pass_on(process.stdout, log)
    seconds = time.monotonic() - began_s
    return f"cut off after {seconds:.0f} s" if ended is None else f"ended with {ended} after {seconds:.0f} s"


def _pass_on(source: IO[str], log: IO[str]) -> None:
    text = os.read(source.fileno(), 1 << 20) if _has_some(source) else b""
    while text:
        log.write(text.decode(errors="replace"))
        log.flush()
        sys.stdout.write(text.decode(errors="replace"))
        sys.stdout.flush()
        text = os.read(source.fileno(), 1 << 20) if _has_some(source) else b""


def _has_some(source: IO[str]) -> bool:
    import select

    return bool(select.select([source], [], [], 0)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, required=True, help="of all together")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("pairs", nargs="+", metavar="SECONDS COMMAND")
    args = parser.parse_args()
    if len(args.pairs) % 2:
        parser.error("give a limit in seconds before each command")
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ["OUT"] = str(args.out)
    ends_s = time.monotonic() + args.seconds
    outcomes: list[str] = []
    with (args.out / "log.txt").open("w") as log:
        for limit, command in zip(args.pairs[::2], args.pairs[1::2], strict=True):
            left_s = min(float(limit), ends_s - time.monotonic())
            outcome = "no time was left" if left_s < _LEAST_S else run(command, left_s, log)
            outcomes.append(f"{command}: {outcome}")
            print(f"=== {outcomes[-1]}", flush=True)
            log.write(f"=== {outcomes[-1]}\n")
    print("\n".join(["", *outcomes]), flush=True)


if __name__ == "__main__":
    main()
