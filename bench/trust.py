"""What people must be able to rely on, in one table: clients, fuzz, soak, overload. `make verify` begins with it.

    python bench/trust.py [--only soak] [--minutes 4]

Each part is a command of its own, one after the other, so that none measures another: the client matrix builds environments for
clients that need their own, the fuzz drives parsers and the HTTP face, the soak and the overload start servers. It prints
claim | figure | goal | met, writes ``bench/results/DATE-trust.{json,md}``, and exits with 1 if a goal is missed. All of it must
end within half an hour on two idle cores, environments included; the table says what each part took.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import report
from report import Claim
from targets import BENCH, WORK, work_folder

ROOT = BENCH.parent
TOTAL_GOAL_S = 30 * 60.0
PART_LIMIT_S = 20 * 60.0
RSS_GOAL_MIB = 64.0
SERVER_RSS_GOAL_MIB = (
    300.0  # as in tests/fuzz/api.py, which makes more a finding; that nothing leaks is the soak's to show
)
SLOWEST_GOAL_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One command.

    Attributes:
        command: After the Python; ``OUT`` stands for the file that it writes.
        read: Turns that file into claims.
        missing: Why it can't be run, if it can't.
    """

    name: str
    command: Sequence[str]
    read: Callable[[Path], list[Claim]]
    missing: str | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", choices=("clients", "fuzz", "soak", "overload"), help="may be repeated"
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="of fuzz and of soak, each (default 3)")
    args = parser.parse_args()
    work_folder()
    # Parts are process groups of their own: SIGTERM must unwind as Ctrl-C does, so that they end with this one.
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(143))
    began_s = time.monotonic()
    facts: dict[str, object] = {**report.machine(), "arguments": sys.argv[1:]}
    claims: list[Claim] = []
    took_s: dict[str, float] = {}
    for part in parts(args.minutes):
        if args.only and part.name not in args.only:
            continue
        part_began_s = time.monotonic()
        claims += run(part)
        took_s[part.name] = time.monotonic() - part_began_s
    total_s = time.monotonic() - began_s
    claims.append(
        Claim(
            claim="time of all of it",
            figure=f"{total_s / 60:.1f} min ("
            + ", ".join(f"{name} {each / 60:.1f}" for name, each in took_s.items())
            + ")",
            goal=f"{TOTAL_GOAL_S / 60:g} min on two idle cores",
            met=total_s <= TOTAL_GOAL_S,
        )
    )
    facts |= {"seconds": round(total_s), "took_s": took_s, "claims": [asdict(claim) for claim in claims]}
    told = ("date", "commit", "cpu", "python", "arguments", "load_average_before")
    lines = ["# Trust", "", *(f"- {name}: {facts[name]}" for name in told), "", *report.claim_lines(claims)]
    print("\n".join(lines))
    print(f"\nwritten: {report.write(BENCH / 'results', facts, [], lines, name='trust')}")
    return 1 if any(claim.met is False for claim in claims) else 0


def parts(minutes: float) -> list[Part]:
    """All of them, in their order."""
    has_fuzz = (ROOT / "tests" / "fuzz" / "__main__.py").exists()
    pytest = ["-m", "pytest", "-q", "-m", "slow or not slow", "--junit-xml", "OUT", "tests/clients"]
    return [
        Part(name="clients", command=pytest, read=read_clients),
        Part(
            name="fuzz",
            command=["-m", "tests.fuzz", "--minutes", f"{minutes:g}", "--json", "OUT"],
            read=read_fuzz,
            missing=None if has_fuzz else "this checkout has no tests/fuzz/__main__.py",
        ),
        Part(name="soak", command=["bench/soak", "--minutes", f"{minutes:g}", "--json", "OUT"], read=read_claims),
        Part(name="overload", command=["bench/overload.py", "--json", "OUT"], read=read_claims),
    ]


def run(part: Part) -> list[Claim]:
    """Runs a part with its output in a log; what it did not write is a missed claim that names the log."""
    if part.missing is not None:
        print(f"{part.name}: not run, {part.missing}", flush=True)
        return [Claim(claim=part.name, figure=f"not run: {part.missing}", goal="", met=None)]
    out = WORK / f"trust-{part.name}.out"
    log_path = WORK / "logs" / f"trust-{part.name}.log"
    out.unlink(missing_ok=True)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    print(f"{part.name}: running, log in {log_path.relative_to(ROOT)}", flush=True)
    with log_path.open("wb") as log:
        # Results keep their arguments: no path of this machine.
        command = [sys.executable, *(str(out.relative_to(ROOT)) if word == "OUT" else word for word in part.command)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status: int | None = process.wait(PART_LIMIT_S)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_group(process)
    how = f"did not end within {PART_LIMIT_S / 60:g} min" if status is None else f"ended with status {status}"
    try:
        claims = part.read(out)
    except (OSError, ValueError, KeyError, TypeError, ElementTree.ParseError) as error:
        return [Claim(claim=part.name, figure=f"{how}, no result ({error}); see {log_path.name}", goal="", met=False)]
    if status != 0 and all(claim.met for claim in claims):  # it knows of something that its figures do not show
        claims.append(
            Claim(claim=f"{part.name}, as a command", figure=f"{how}; see {log_path.name}", goal="0", met=False)
        )
    return claims


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends whatever a part has left of itself: politely, so that its servers go, then by force."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            return
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            continue


def read_clients(out: Path) -> list[Claim]:
    """Counts tests, which are cells of docs/clients.md."""
    suite = next(ElementTree.parse(out).iter("testsuite"))
    count, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    bad = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    cells = len(re.findall(r"\[yes\]\(\.\./tests/clients/", (ROOT / "docs" / "clients.md").read_text()))
    names = [
        case.attrib["name"]
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return [
        Claim(
            claim=f"clients with environments of their own, live ({cells} cells of docs/clients.md, and the table itself)",
            figure=f"{count - bad - skipped} of {count} tests passed" + (f"; not {', '.join(names)}" if names else ""),
            goal="all",
            met=not bad and not skipped and count >= cells,
        )
    ]


def read_fuzz(out: Path) -> list[Claim]:
    """What `tests.fuzz` wrote."""
    found = json.loads(out.read_text())
    growth_mib = {part["name"]: part["rss_growth_mib"] for part in found["parts"]}
    server_mib = growth_mib.pop("api", 0.0)
    readers_mib = max(growth_mib.values(), default=0.0)
    return [
        Claim(
            claim="fuzz: parsers of foreign bytes and the HTTP face",
            figure=f"{found['findings']} findings in {found['cases']:,} cases, {len(found['parts'])} parts",
            goal="0",
            met=found["findings"] == 0 and found["cases"] > 0,
        ),
        Claim(
            claim="fuzz: the slowest case",
            figure=f"{found['slowest_s']:.2f} s",
            goal=f"{SLOWEST_GOAL_S:g} s",
            met=found["slowest_s"] <= SLOWEST_GOAL_S,
        ),
        Claim(
            claim="fuzz: growth of a reader's memory",
            figure=f"{readers_mib:.1f} MiB",
            goal=f"{RSS_GOAL_MIB:g} MiB",
            met=readers_mib <= RSS_GOAL_MIB,
        ),
        Claim(
            claim="fuzz: growth of the server and its six workers, in the second half",
            figure=f"{server_mib:.1f} MiB",
            goal=f"{SERVER_RSS_GOAL_MIB:g} MiB: a worker keeps what its largest request so far took",
            met=server_mib <= SERVER_RSS_GOAL_MIB,
        ),
    ]


def read_claims(out: Path) -> list[Claim]:
    """What a benchmark of this folder wrote."""
    return [Claim(**claim) for claim in json.loads(out.read_text())]


if __name__ == "__main__":
    sys.exit(main())
