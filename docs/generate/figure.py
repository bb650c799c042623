"""Draws the figures of the design pages: bars, lines and bands as SVG that needs nothing else and reads in light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#64748b")

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 48, 40


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of a row.

    Attributes:
        row: Number of its row, from the top.
        begin: Where it starts.
        end: Where it ends.
        kind: Its entry of the legend.
    """

    row: int
    begin: float
    end: float
    kind: str


def bars(title: str, unit: str, groups: Mapping[str, Mapping[str, float]], *, stacked: bool = False) -> str:
    """Groups of bars, one bar a series; stacked, one bar a group with a part a series.

    Args:
        title: Above it.
        unit: Of the vertical axis.
        groups: Values by group, then by series.
    """
    series = list(dict.fromkeys(name for values in groups.values() for name in values))
    sums = [sum(values.values()) if stacked else max(values.values()) for values in groups.values()]
    top, ticks = _scale(max(sums))
    width = (_WIDTH - _LEFT - _RIGHT) / len(groups)
    parts: list[str] = []
    for index, (group, values) in enumerate(groups.items()):
        left, base = _LEFT + index * width, 0.0
        each = width * 0.8 / (1 if stacked else len(series))
        for number, name in enumerate(series):
            if name not in values:
                continue
            x = left + width * 0.1 + (0 if stacked else number * each)
            y, foot = _y(base + values[name], top), _y(base, top)
            colour = COLOURS[number % len(COLOURS)]
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{each - 2:.1f}" height="{foot - y:.1f}" fill="{colour}"/>'
            )
            if not stacked:
                parts.append(_text(x + each / 2 - 1, y - 4, _number(values[name]), anchor="middle", size=11))
            base += values[name] if stacked else 0.0
        parts.append(_text(left + width / 2, _HEIGHT - _BOTTOM + 18, group, anchor="middle"))
    return _figure(title, unit, top, ticks, series, parts)


def lines(title: str, unit: str, across: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One line a series.

    Args:
        title: Above it.
        unit: Of the vertical axis.
        across: What the horizontal axis is.
        curves: Points by series.
    """
    points = [point for curve in curves.values() for point in curve]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    top, ticks = _scale(max(y for _, y in points))

    def place(x: float) -> float:
        return _LEFT + (x - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    parts: list[str] = []
    for number, curve in enumerate(curves.values()):
        path = " ".join(f"{place(x):.1f},{_y(y, top):.1f}" for x, y in curve)
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for x in (first, (first + last) / 2, last):
        parts.append(_text(place(x), _HEIGHT - _BOTTOM + 16, _number(x), anchor="middle"))
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 6, across, anchor="end"))
    return _figure(title, unit, top, ticks, list(curves), parts)


def timeline(title: str, across: str, rows: Sequence[str], bands: Sequence[Band]) -> str:
    """Rows with stretches of time.

    Args:
        title: Above it.
        across: What the horizontal axis is.
        rows: Their names, from the top.
        bands: What is in them.
    """
    kinds = list(dict.fromkeys(band.kind for band in bands))
    last = max(band.end for band in bands)
    left, pitch = 150, 18
    height = _TOP + pitch * len(rows) + _BOTTOM
    scale = (_WIDTH - left - _RIGHT) / last
    parts = [_text(left - 8, _TOP + pitch * row + 13, name, anchor="end", size=11) for row, name in enumerate(rows)]
    for band in bands:
        width = max(1.0, (band.end - band.begin) * scale - 0.5)
        parts.append(
            f'<rect x="{left + band.begin * scale:.1f}" y="{_TOP + pitch * band.row + 2}" width="{width:.1f}" '
            f'height="{pitch - 4}" fill="{COLOURS[kinds.index(band.kind) % len(COLOURS)]}"/>'
        )
    for share in (0.0, 0.5, 1.0):
        x = left + share * last * scale
        parts.append(_text(x, height - _BOTTOM + 16, f"{last * share:.2g}", anchor="middle"))
    parts.append(_text(_WIDTH - _RIGHT, height - 6, across, anchor="end"))
    return _page(title, kinds, parts, height)


def _scale(largest: float) -> tuple[float, list[float]]:
    """The end of an axis that shows a value, and round figures for its marks."""
    power = 10.0 ** math.floor(math.log10(largest / 4))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each * 4.5 >= largest)
    count = math.ceil(largest * 1.08 / step)
    return count * step, [step * number for number in range(1, count + 1)]


def _figure(
    title: str, unit: str, top: float, ticks: Sequence[float], series: Sequence[str], parts: Sequence[str]
) -> str:
    axis = [f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="#888"/>']
    for tick in ticks:
        y = _y(tick, top)
        axis.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#888" stroke-opacity="0.25"/>')
        axis.append(_text(_LEFT - 6, y + 4, f"{tick:,g}", anchor="end"))
    axis.append(_text(_LEFT - 6, _TOP - 10, unit, anchor="end", size=11))
    return _page(title, series if len(series) > 1 else (), [*axis, *parts], _HEIGHT)


def _page(title: str, legend: Sequence[str], parts: Sequence[str], height: float) -> str:
    head, x = [_text(_WIDTH / 2, 18, title, anchor="middle", size=14)], float(_LEFT)
    for number, name in enumerate(legend):
        head.append(f'<rect x="{x:.0f}" y="28" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>')
        head.append(_text(x + 14, 37, name, size=11))
        x += 30 + 6.2 * len(name)
    size = f'viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" role="img">'
        f"<title>{escape(title)}</title>"
        f'<rect width="{_WIDTH}" height="{height:.0f}" rx="6" fill="#fff"/>{"".join([*head, *parts])}</svg>\n'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)
