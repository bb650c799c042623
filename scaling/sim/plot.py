"""Draws a simulation: what it cost against the promises kept, and the fleet over time."""

# pyright: reportUnknownMemberType=false
# matplotlib types its methods in part: each takes further keywords.

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sixfold.core.errors import ConfigError
from sixfold.scaling.sim.experiment import Frontier
from sixfold.scaling.sim.simulation import Moment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 600
"""Ticks that are drawn: more make a large file and no other picture."""


def draw(frontier: Frontier, path: Path, title: str) -> None:
    """Writes the picture, as SVG, PNG or PDF by the file's ending; the same frontier gives the same file.

    Raises:
        ConfigError: The drawing library is not installed, or the file cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("Drawing needs matplotlib. Install sixfold[sim], or leave --plot out.") from error
    with mpl.rc_context({"svg.hashsalt": "sixfold", "svg.fonttype": "none", "font.size": 9.0}):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_costs(left, frontier)
        _draw_fleet(right, frontier.scaled.history.moments)
        figure.suptitle(title, fontsize=10)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--plot {path}: cannot be written: {error}.") from error


def _draw_costs(axes: Axes, frontier: Frontier) -> None:
    points = frontier.static.values()
    axes.plot(
        [summary.gpu_hours for summary in points],
        [100 * summary.attainment for summary in points],
        color="0.5",
        marker="o",
        markersize=3.5,
        linewidth=1.0,
        label="fixed fleets",
    )
    scaled = frontier.scaled.summary
    axes.plot(
        [scaled.gpu_hours],
        [100 * scaled.attainment],
        color="tab:green",
        marker="D",
        linestyle="none",
        label="autoscaled",
    )
    if frontier.equal is not None and frontier.saved_share is not None:
        equal = frontier.static[frontier.equal]
        axes.annotate(
            f"{frontier.equal} fixed replicas\n{-100 * frontier.saved_share:+.0f} % GPU-hours",
            (equal.gpu_hours, 100 * equal.attainment),
            textcoords="offset points",
            xytext=(4, -28),
            fontsize=8,
        )
    axes.set_xlabel("GPU-hours")
    axes.set_ylabel("requests within the objective, %")
    axes.legend(loc="lower right", frameon=False)


def _draw_fleet(axes: Axes, moments: list[Moment]) -> None:
    drawn = moments[:: max(1, len(moments) // _MOST_POINTS)]
    unit_s, unit = (3600.0, "h") if drawn and drawn[-1].at_s > 3 * 3600 else (60.0, "min")
    times = [moment.at_s / unit_s for moment in drawn]
    axes.step(
        times, [moment.num_replicas for moment in drawn], where="post", color="tab:green", label="replicas paid for"
    )
    axes.step(times, [moment.num_ready for moment in drawn], where="post", color="tab:green", alpha=0.4, label="ready")
    axes.set_xlabel(unit)
    axes.set_ylabel("replicas")
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    other.plot(
        times, [moment.num_in_flight for moment in drawn], color="tab:blue", linewidth=0.6, label="requests in flight"
    )
    other.set_ylabel("requests in flight")
    other.set_ylim(bottom=0)
    axes.legend(loc="upper left", frameon=False)
