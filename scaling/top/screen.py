"""A frame as tables for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sixfold.core.memory.need import format_bytes
from sixfold.scaling.top.figures import Frame, ModelFigures

_NOTHING = "-"
_STATE_STYLES = {"ready": "green", "loading": "yellow", "failed": "bold red", "not ready": "yellow"}
_FULL = 0.95


def draw(frame: Frame, *, url: str, seconds: float) -> RenderableType:
    """All of it.

    Args:
        frame: What to show.
        url: Where it was read.
        seconds: Between its two looks.
    """
    statuses = "  ".join(f"{status}: {value:.1f}/s" for status, value in frame.http_per_s if value)
    parts: list[RenderableType] = [
        Text(f"{url}  rates and percentiles of the last {seconds:.3g} s  {statuses}", style="dim")
    ]
    parts.append(_models(frame))
    if frame.replicas:
        parts.append(_replicas(frame))
    parts += [
        Text(
            f"memory of {device}: {format_bytes(int(total - free))} claimed of {format_bytes(int(total))}", style="dim"
        )
        for device, free, total in frame.memory
    ]
    return Group(*parts)


def _models(frame: Frame) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("MODEL", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    for heading in (
        *("RUN", "WAIT", "BATCH", "QUEUE", "REQ/S", "FAIL/S", "TOK/S", "WORK/S", "KV", "HITS"),
        *("TTFT p50/95", "ITL p50/95", "E2E p50/95", "MEMORY"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in frame.models:
        table.add_row(model.name, _state(model), *_cells(model))
    return table


def _state(model: ModelFigures) -> Text:
    return Text(model.state or _NOTHING, style=_STATE_STYLES.get(model.state or "", ""))


def _cells(model: ModelFigures) -> list[Text | str]:
    failing = "red" if model.failed_per_s else ""
    full = "red" if model.cache_use is not None and model.cache_use >= _FULL else ""
    return [
        _count(model.num_running),
        _count(model.num_waiting),
        _count(model.num_sequences),
        _seconds(model.queued_s),
        _rate(model.finished_per_s),
        Text(_rate(model.failed_per_s), style=failing),
        _rate(model.tokens_per_s),
        _rate(model.units_per_s),
        Text(_share(model.cache_use), style=full),
        _share(model.hit_rate),
        _pair(model.ttft_s),
        _pair(model.itl_s),
        _pair(model.e2e_s),
        _NOTHING if model.memory_bytes is None else format_bytes(int(model.memory_bytes)),
    ]


def _replicas(frame: Frame) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("SERVER", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    for heading in ("RUN", "ROUTED/S", "FAIL/S"):
        table.add_column(heading, justify="right", no_wrap=True)
    for replica in frame.replicas:
        state = Text("up", style="green") if replica.up else Text("down", style="bold red")
        table.add_row(
            replica.name, state, _count(replica.num_running), _rate(replica.routed_per_s), _rate(replica.failed_per_s)
        )
    return table


def _count(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.0f}"


def _rate(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}"


def _share(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.0%}"


def _seconds(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value * 1000:.0f}ms" if value < 1 else f"{value:.1f}s"


def _pair(values: tuple[float, float] | None) -> str:
    return _NOTHING if values is None else f"{_seconds(values[0])}/{_seconds(values[1])}"
