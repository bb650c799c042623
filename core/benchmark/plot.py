"""Draws how latencies are distributed, as an SVG that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from sixfold.core.benchmark.outcome import Outcome

_WIDTH, _HEIGHT, _MARGIN = 360, 240, 46
_COLOURS = ("#2563eb", "#dc2626")
_MAX_POINTS = 200


def draw_distributions(runs: Mapping[str, Sequence[Outcome]]) -> str:
    """Three panels (first part, between parts, whole answer), each with a curve a server: the share that was done by then.

    Args:
        runs: Outcomes by the server's name; one or two.
    """
    panels: tuple[tuple[str, dict[str, list[float]]], ...] = (
        ("to the first part", {name: [o.ttft_s for o in run if o.ttft_s is not None] for name, run in runs.items()}),
        (
            "between parts",
            {name: [gap for o in run if o.error is None for gap in o.gaps_s] for name, run in runs.items()},
        ),
        ("whole answer", {name: [o.e2e_s for o in run if o.error is None] for name, run in runs.items()}),
    )
    drawn = [
        f'<g transform="translate({index * _WIDTH},0)">{_panel(title, values)}</g>'
        for index, (title, values) in enumerate(panels)
    ]
    legend = "".join(
        f'<text x="{_MARGIN + index * 340}" y="{_HEIGHT + 18}" fill="{_COLOURS[index % 2]}">{escape(name)}</text>'
        for index, name in enumerate(runs)
    )
    size = f'width="{_WIDTH * len(panels)}" height="{_HEIGHT + 30}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
        f'<rect {size} fill="white"/>{"".join(drawn)}{legend}</svg>\n'
    )


def _panel(title: str, values: Mapping[str, Sequence[float]]) -> str:
    top = max((max(each) for each in values.values() if each), default=0.0)
    parts = [f'<text x="{_WIDTH / 2}" y="18" text-anchor="middle">{escape(title)}</text>']
    right, bottom = _WIDTH - 14, _HEIGHT - 34
    parts.append(f'<path d="M{_MARGIN} 28V{bottom}H{right}" fill="none" stroke="#888"/>')
    for share in (0.5, 0.95):
        y = bottom - share * (bottom - 28)
        parts.append(f'<path d="M{_MARGIN} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{_MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    if top <= 0:
        return "".join([*parts, f'<text x="{_WIDTH / 2}" y="120" text-anchor="middle" fill="#888">nothing</text>'])
    for share in (0.0, 0.5, 1.0):
        x = _MARGIN + share * (right - _MARGIN)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_seconds(top * share)}</text>')
    for index, each in enumerate(values.values()):
        points = " ".join(
            f"{_MARGIN + value / top * (right - _MARGIN):.1f},{bottom - share * (bottom - 28):.1f}"
            for value, share in _curve(each)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_COLOURS[index % 2]}" stroke-width="1.5"/>')
    return "".join(parts)


def _curve(values: Sequence[float]) -> list[tuple[float, float]]:
    ordered = sorted(values)
    step = max(1, len(ordered) // _MAX_POINTS)
    kept = [(ordered[index], (index + 1) / len(ordered)) for index in range(0, len(ordered), step)]
    return [*kept, (ordered[-1], 1.0)] if ordered else []


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if 0 < value < 1 else f"{value:.3g} s"
