"""One table of what each GPU optimisation gave, from the JSON files that the scripts of this folder wrote.

    python bench/gpu/optimisations.py bench/results/2026-11-30-h200-*.json

Rows of `alone.py` are ways that took turns in one run. Where a file has none for an optimisation, the figures of the other
scripts stand in (one run, but one way after the other; "two runs" where even that is not so). What has no figure is named below.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimisation_list import OPTIMISATIONS

_NOTHING = 1.02  # times as fast; less is within what two runs of the same differ by


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line.

    Attributes:
        key: Of `OPTIMISATIONS`.
        shape: Of the model and the input.
        off: Without it, in `unit`.
        on: With it.
        unit: More is better where it ends in "/s".
        note: On top of what, and what else is to be said.
        source: Name of the file.
    """

    key: str
    shape: str
    off: float
    on: float
    unit: str
    note: str
    source: str

    @property
    def times(self) -> float:
        """Times as fast with it."""
        return self.on / self.off if self.unit.endswith("/s") else self.off / self.on


def rows_of(document: dict[str, Any], source: str) -> Iterator[Row]:
    """All rows of one file; none of a file of another kind."""
    for each in document.get("optimisations", ()):
        base = f"off: {each['base']}" if each["base"] else ""
        note = "; ".join(filter(None, (base, each["note"])))
        yield Row(source=source, note=note, **{name: each[name] for name in ("key", "shape", "off", "on", "unit")})
    if isinstance(document.get("beams"), dict):
        yield from _rows_of_asr(document["beams"], source)
    if isinstance(document.get("ablate"), dict):
        yield from _rows_of_image(document, source)
    if isinstance(document.get("steps"), list):
        yield from _rows_of_native_steps(document["steps"], source)
    if "serve_True" in document or "serve_on" in document:
        yield from _rows_of_native_serving(document, source)
    if isinstance(document.get("size"), dict) and "runs" in document:
        yield from _rows_of_video(document, source)
    if isinstance(document.get("shapes"), dict):
        yield from _rows_of_embedding(document["shapes"], source)


def _rows_of_asr(beams: dict[str, Any], source: str) -> Iterator[Row]:
    for number, found in beams.items():
        parts = found.get("parts") or []
        last = next((part for part in parts if "computed_text_s" in part), None)
        if last is None:
            continue
        windows, shape = last["windows"], f"Whisper large-v3, {number} beams, {last['windows']} windows"
        replayed, computed, encode = last["text_s"], last["computed_text_s"], last["encode_s"]
        yield _ms("asr.graphs", f"{shape}, texts of 100 tokens", computed, replayed, "", source)
        alone = next((part for part in parts if part["windows"] == 1), None)
        if alone is not None and windows > 1:
            off = windows * (alone["encode_s"] + alone["text_s"])
            yield _ms("asr.windows", shape, off, encode + replayed, "on top of graphs; encoding and text", source)
        peer = next((value for name, value in found.items() if name == f"peer, batches of {windows}"), None)
        if peer is not None:
            note = "off: generate of transformers; on: computed without graphs, encoding and text"
            yield _ms("asr.static-decoder", shape, windows / peer, encode + computed, note, source)


def _rows_of_image(document: dict[str, Any], source: str) -> Iterator[Row]:
    name = {"sdxl": "SDXL", "flux": "Flux.1-dev"}[document["arch"]]
    pairs = [("graphs", "eager", "graphs"), ("compiled", "eager", "compiled")]
    pairs += [("compiled", "graphs", "compiled+graphs"), ("fp8", "compiled+graphs", "fp8+compiled+graphs")]
    for part, found in document["ablate"].items():
        if part.startswith("steps_"):
            seconds = {(row["mode"], row["rows"]): row["s"] for row in found}
            for count in sorted({row["rows"] for row in found}):
                shape = f"{name}, {part[6:]} px, {count} rows"
                for key, off, on in pairs:
                    if (off, count) in seconds and (on, count) in seconds:
                        note = "" if off == "eager" else f"on top of {off}"
                        times = seconds[off, count], seconds[on, count]
                        yield _ms(f"image.{key}", shape, *times, note, source)
        elif part == "decode":
            seconds = {(row["mode"], row["rows"]): row["s_a_picture"] for row in found}
            most = max(row["rows"] for row in found)
            shape = f"{name}, a picture of {most}"
            yield _ms("image.vae-batch", shape, seconds["contiguous", 1], seconds["contiguous", most], "", source)
            times = seconds["contiguous", most], seconds["channels last", most]
            yield _ms("image.vae-channels-last", shape, *times, "", source)


def _rows_of_video(document: dict[str, Any], source: str) -> Iterator[Row]:
    for run in document["runs"]:
        seconds = run["seconds_per_forward"]
        if "1" in seconds and "2" in seconds:
            shape = f"{document['size']['name']}, {run['frames']} frames, 2 forwards of 1 rows or one of 2"
            yield _ms("video.merged-rows", shape, 2 * seconds["1"], seconds["2"], "", source)


def _rows_of_native_steps(steps: Sequence[dict[str, Any]], source: str) -> Iterator[Row]:
    for step in steps:
        if step.get("rows") in (1, 32, 256) and "replayed_s" in step:
            shape = f"Llama-3.2-1B, a step of {step['rows']} rows, contexts of 640"
            yield _ms("llm.graphs", shape, step["computed_s"], step["replayed_s"], "on top of paged", source)


def _rows_of_native_serving(document: dict[str, Any], source: str) -> Iterator[Row]:
    on, off = (document.get(f"serve_{a}") or document.get(f"serve_{b}") for a, b in (("True", "on"), ("False", "off")))
    if not on or not off:
        return
    for unit, figure in (("tokens/s", "tok_s"), ("ms a token", "tpot_p50_ms"), ("ms to the first", "ttft_p50_ms")):
        middle = [statistics.median(each[figure] for each in side["rounds"]) for side in (off, on)]
        shape = f"Llama-3.2-1B, 256 streams, {unit}"
        yield Row(
            key="llm.steps-ahead",
            shape=shape,
            off=middle[0],
            on=middle[1],
            unit=unit,
            note="on top of graphs",
            source=source,
        )


def _rows_of_embedding(shapes: dict[str, Any], source: str) -> Iterator[Row]:
    for name, found in shapes.items():
        for step in found.get("step", ()):
            if "computed_s" in step:
                shape = f"{name}, {step['texts']} texts, {step['lengths']}"
                note = "on top of own layers and attention"
                yield _ms("embedding.graphs", shape, step["computed_s"], step["pipelined_s"], note, source)


def rows_across(documents: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Rows whose two sides are two files."""
    ratios: dict[str, float] = {}
    for source, document in documents.items():
        rounds = document.get("rounds")
        if isinstance(rounds, dict) and rounds.get("raw") and rounds.get("http"):
            pairs = zip(rounds["http"], rounds["raw"], strict=False)
            ratios[source] = statistics.median(ours["tok_s"] / raw["tok_s"] for ours, raw in pairs)
    off = next((name for name in ratios if name.endswith("-vllm-generators")), None)
    on = next((name for name in ratios if name.endswith("-vllm-one-client")), None)
    if off and on:
        note = "tokens/s over HTTP as a share of raw in the same run; two runs"
        yield Row(
            key="vllm.collector",
            shape="Llama-3.2-1B, 256 streams",
            off=ratios[off],
            on=ratios[on],
            unit="of raw/s",
            note=note,
            source=f"{off}, {on}",
        )
    sides = [
        (name, document["models"]["vits"]["ours"]["sound_per_s"])
        for ending in ("-tts-computed", "-tts")
        for name, document in documents.items()
        if name.endswith(ending) and "vits" in document.get("models", {})
    ]
    if len(sides) == 2:
        (first, off_rate), (second, on_rate) = sides
        yield Row(
            key="tts.vits-graphs",
            shape="VITS (MMS), float32, 64 sentences at once",
            off=off_rate,
            on=on_rate,
            unit="s of sound/s",
            note="two runs",
            source=f"{first}, {second}",
        )


def _ms(key: str, shape: str, off_s: float, on_s: float, note: str, source: str) -> Row:
    return Row(key=key, shape=shape, off=1e3 * off_s, on=1e3 * on_s, unit="ms", note=note, source=source)


def choose(rows: Sequence[Row], alone: set[str]) -> list[Row]:
    """In the order of the list. Rows of `alone.py` make the others of their optimisation superfluous.

    Args:
        rows: All.
        alone: Names of the files of `alone.py`.
    """
    measured = {row.key for row in rows if row.source in alone}
    kept = [row for row in rows if row.source in alone or row.key not in measured]
    places = {key: place for place, key in enumerate(OPTIMISATIONS)}
    return sorted(kept, key=lambda row: places[row.key])


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| optimisation | modality and shape | when it helps | off | on | times | source |", "|---" * 7 + "|"]
    for row in rows:
        known = OPTIMISATIONS[row.key]
        name = known.name if known.is_in_code else f"{known.name} (not in the code)"
        shape = f"{known.modality}: {row.shape}" + (f" ({row.note})" if row.note else "")
        times = f"**{row.times:.2f}**" if row.times >= _NOTHING else f"{row.times:.2f}"
        sides = (f"{_figure(value)} {row.unit}" for value in (row.off, row.on))
        lines.append(f"| {name} | {shape} | {known.when} | {' | '.join(sides)} | {times} | {row.source} |")
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def verdicts(rows: Sequence[Row]) -> str:
    """What has no figure, and what is in the code and gave nothing in any of its rows."""
    best: dict[str, float] = {}
    for row in rows:
        best[row.key] = max(best.get(row.key, 0.0), row.times)
    lines: list[str] = []
    for key, each in OPTIMISATIONS.items():
        if key not in best:
            lines.append(f"- **No figure**: {each.modality}, {each.name} (`{each.measured_by}`).")
        elif best[key] < _NOTHING and each.is_in_code:
            lines.append(f"- **Gave nothing** ({best[key]:.2f} at best): {each.modality}, {each.name} ({each.place}).")
        elif best[key] >= _NOTHING and not each.is_in_code:
            lines.append(f"- **Gave {best[key]:.2f} and is not in the code**: {each.modality}, {each.name}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    documents: dict[str, dict[str, Any]] = {}
    for path in args.files:
        document = json.loads(path.read_text())
        if isinstance(document, dict) and document.get("tiny"):
            print(f"{path.stem} is of a trial on a CPU and is left out.\n")
        elif isinstance(document, dict):
            documents[path.stem] = document
    rows = [row for source, document in documents.items() for row in rows_of(document, source)]
    rows += rows_across(documents)
    alone = {source for source, document in documents.items() if "optimisations" in document}
    chosen = choose(rows, alone)
    print(f"{table(chosen)}\n\n{verdicts(chosen)}")


if __name__ == "__main__":
    main()
