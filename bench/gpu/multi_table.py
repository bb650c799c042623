"""The tables of a results page, from what multi.py has written.

python bench/gpu/multi_table.py multi.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any


def table(found: Mapping[str, Any]) -> str:
    """Markdown."""
    steps: Mapping[str, Any] = found.get("steps", {})
    lines = [f"`{found.get('command')}` on {found.get('ranks')} x {found.get('device')}, random weights", ""]
    lines += [*_shared(steps), *_equal(steps), *_bursts(steps), *_deaths(steps)]
    lines += [f"- FAILED {step}: {reason.splitlines()[-1][:300]}" for step, reason in found.get("failures", {}).items()]
    lines.append(f"- seconds by step: {found.get('seconds')}")
    return "\n".join(lines)


def _shared(steps: Mapping[str, Any]) -> Iterator[str]:
    yield "| shape | way | ranks | alone, s | shared, s | times as fast | efficiency | error | allowed | other kernels |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for step in steps.values():
        for way in step.get("ways", ()) if isinstance(step, dict) else ():
            yield _line(step, way, way["way"])
    rows = steps.get("rows", {})
    for shape in rows.get("shapes", ()):
        yield _line(shape, shape, rows["way"])
    if "killed_rank" in rows:
        killed = rows["killed_rank"]
        yield f"\n- A rank killed in mid-step was known to the leader after {killed['known_after_s']:.2f} s: {killed['how']}"


def _line(shape: Mapping[str, Any], way: Mapping[str, Any], name: str) -> str:
    noise = ", ".join(
        f"{kind.split('_')[0].lower()} {value:.1e}" for kind, value in shape.get("other_kernels", {}).items()
    )
    error = f"{way['error']:.1e}" if way["ok"] else f"**{way['error']:.1e}**"
    return (
        f"| {shape['shape']} | {name} | {way['ranks']} | {shape['alone_s']:.3f} | {way['step_s']:.3f} | {way['times']:.2f} "
        f"| {way['efficiency']:.0%} | {error} | {shape['tolerance']:.0e} | {noise} |"
    )


def _equal(steps: Mapping[str, Any]) -> Iterator[str]:
    for each in steps.get("split-equal", ()):
        yield (
            f"- float32, {each['transport']}: {each['identical']} of {each['prompts']} answers of {each['answer_tokens']} tokens "
            f"identical (one server twice: {each['identical_of_one_server_twice']}), {each['fetched']} fetched, "
            f"{each['failed_transfers']:g} transfers failed, {each.get('bytes_per_s', 0) / 1e9:.2f} GB/s"
        )


def _bursts(steps: Mapping[str, Any]) -> Iterator[str]:
    found = steps.get("split-bursts", {})
    if not found.get("rounds"):
        return
    yield f"\n{found['load']}, {found['dtype']}, {found['measured']['bytes_per_s'] / 1e9:.2f} GB/s by {found['transport']}\n"
    yield (
        "| way | ITL before p50, p99 (ms) | during p50, p99, max (ms) | burst's TTFT p50, max (ms) | burst, s "
        "| streams that outlast it | split | identical answers, common beginning |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for each in found["rounds"]:
        before, during, first = each["itl_before_ms"], each["itl_during_ms"], each["burst_ttft_ms"]
        yield (
            f"| {each['way']} {each['round']} | {before.get('p50')}, {before.get('p99')} | {during.get('p50')}, "
            f"{during.get('p99')}, {during.get('max')} | {first['p50']}, {first['max']} | {each['burst_s']:.2f} "
            f"| {each['streams_left']} | {each['split']:g} of {each['split'] + each['stayed'] + each['failed']:g} "
            f"| {each.get('identical_texts')} of {each.get('num_texts')}, {each.get('common_beginning', 0):.0%} |"
        )
    for way in ("aggregated", "split"):
        p99 = [each["itl_during_ms"].get("p99", 0.0) for each in found["rounds"] if each["way"] == way]
        if p99:
            yield f"- {way}: p99 during the burst {median(p99):.2f} ms (median of {len(p99)} rounds)"


def _deaths(steps: Mapping[str, Any]) -> Iterator[str]:
    yield "\n| killed in mid-step | known after, s | the request | ended after, s | same result after, s | difference | ok |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name in ("death-tokens", "death-guidance", "death-film"):
        found = steps.get(name)
        if isinstance(found, str):
            yield f"| {name.removeprefix('death-')} | {found} |"
        elif found is not None:
            yield (
                f"| {name.removeprefix('death-')} | {found['known_after_s']:.2f} | {found['request']} "
                f"| {found.get('request_ended_after_s', -1):.2f} | {found['same_result_after_s']:.1f} "
                f"| {found['difference_levels']:.4f} | {found['ok']} |"
            )


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
