"""Draws what the runs of a date on one kind of GPU came to, from their JSON files.

python bench/gpu/plot.py bench/results/2026-11-29-h200 [--out bench/results/2026-11-29-h200.svg]

Two panels: how many times the peer of the same run, and how near the floor (FLOPs over the measured peak). What was not run is
left out. Needs matplotlib, which the development environment has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

Files = Mapping[str, Mapping[str, Any]]
Bar = tuple[str, float]


def read(stem: Path) -> dict[str, Any]:
    """The files whose names begin so, by the rest of their names."""
    found = {}
    for path in sorted(stem.parent.glob(f"{stem.name}-*.json"), key=lambda path: path.stem):
        found[path.stem.removeprefix(f"{stem.name}-")] = json.loads(path.read_text())
    return found


def ratios(files: Files) -> Iterator[Bar]:
    """Throughput over the peer's in the same run; latencies over ours."""
    for name, found in files.items():
        for part, loads in found.items():
            if part.startswith("serve_") and part.count("_") == 2:
                yield from _pictures(part, loads)
        for shape, seen in found.get("shapes", {}).items() if name.startswith("embedding") else ():
            yield f"embeddings, {shape}: tokens/s of encode's", seen["encode_ratio"]
            served = seen["batches_served"]["p95_ms"] / seen["ours_served"]["p95_ms"]
            yield f"embeddings, {shape}: p95 of one batch at a time over ours", served
    for beams, seen in files.get("asr", {}).get("beams", {}).items():
        peers = [value for peer, value in seen.items() if peer.startswith("peer") and isinstance(value, float)]
        if peers:
            yield f"Whisper large-v3, {beams} beams: windows/s", seen["ours"]["windows_per_s"] / max(peers)
    speech = {**files.get("tts", {}).get("models", {}), **files.get("tts-speecht5", {}).get("models", {})}
    for model, seen in speech.items():
        if "peer" in seen:
            yield f"speech, {model}: sound/s", seen["ours"]["sound_per_s"] / seen["peer"]["sound_per_s"]
    rounds = files.get("vllm", {}).get("rounds", {})
    if "http" in rounds:
        pairs = zip(rounds["raw"], rounds["http"], strict=False)
        yield "vLLM over HTTP: tokens/s of raw", median(ours["tok_s"] / raw["tok_s"] for raw, ours in pairs)


def _pictures(part: str, loads: Mapping[str, Any]) -> Iterator[Bar]:
    _serve, size, kind = part.split("_")
    for load, seen in loads.items():
        if not isinstance(seen, dict) or not load[0].isdigit():
            continue
        stock = next((value for name, value in seen.items() if name.startswith("stock, locked")), None)
        ours = next((value for name, value in seen.items() if name.startswith("sixfold") and "graphs" in name), None)
        if stock and ours:
            yield f"SDXL {size} px, {kind}, load {load}: images/s", ours["images_per_s"] / stock["images_per_s"]
            yield f"SDXL {size} px, {kind}, load {load}: p95 over ours", stock["p95_s"] / ours["p95_s"]


def shares(files: Files) -> Iterator[Bar]:
    """The floor over what it took."""
    for found in files.values():
        for part, steps in found.get("ablate", {}).items():
            for step in steps if part.startswith("steps_") else ():
                if step.get("rows") == 1 and "of_peak" in step:
                    yield f"{found['arch']} {part.removeprefix('steps_')} px, {step['mode']}", step["of_peak"]
    for name, found in files.items():
        for shape, seen in found.get("shapes", {}).items() if name.startswith("embedding") else ():
            for step in seen["step"]:
                yield f"embeddings, {shape}, {step['lengths']}", step["floor_s"] / step["pipelined_s"]
    for beams, seen in files.get("asr", {}).get("beams", {}).items():
        yield f"Whisper large-v3, {beams} beams", seen["ours"]["windows_per_s"] * seen["floor_s"]


def draw(files: Files, title: str, out: Path) -> None:
    """Writes the SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {
        "svg.hashsalt": "sixfold",
        "svg.fonttype": "none",
    }  # the same figures make the same file, a small one
    from matplotlib import pyplot

    left, right = dict(ratios(files)), dict(shares(files))
    height = 0.26 * max(len(left), len(right)) + 1.2
    figure, panels = pyplot.subplots(1, 2, figsize=(15, height), width_ratios=(3, 2))
    for panel, bars, name, mark in (
        (panels[0], left, "times the peer of the same run", "{:.2f}"),
        (panels[1], right, "share of the floor", "{:.0%}"),
    ):
        drawn = panel.barh(list(bars), list(bars.values()), color="#2563eb")
        panel.bar_label(drawn, labels=[mark.format(value) for value in bars.values()], padding=3, fontsize=8)
        panel.axvline(1.0, color="#dc2626", linewidth=1)
        panel.set_title(name, fontsize=10)
        panel.tick_params(labelsize=8)
        panel.invert_yaxis()
    panels[0].set_xscale("log")
    panels[0].margins(x=0.15)
    panels[1].set_xlim(0, 1.15)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stem", type=Path, help="what the names of the files begin with")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out or args.stem.with_name(f"{args.stem.name}.svg")
    draw(read(args.stem), f"{args.stem.name}: random weights at real sizes", out)
    print(out)


if __name__ == "__main__":
    main()
