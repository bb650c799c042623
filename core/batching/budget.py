"""The step budget: how much work one step does, moved by the declared objective. An optimisation needs its constraint.

A step of ``u`` units takes about ``a + b * u`` seconds: ``a`` is paid whatever the batch, ``b`` is the hardware. Both are
fitted to the measured steps. For throughput the budget is the least at which the fixed part costs 5%; more would add
latency and nothing else. For a latency target it is bounded by what a step may take, and moved by the measured p95.

Full steps all have one size, and from one size ``a`` and ``b`` cannot be told apart. So while the measured sizes differ too
little, every other period of steps gets a smaller budget.

Whole jobs are another matter: their budget for throughput is all that the memory allows, and `StepShare` says how many of
them share a step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sixfold.core.batching.model import StepRange
from sixfold.core.batching.step_share import MeasuredStep, StepShare
from sixfold.core.decisions import DecisionLog

_THROUGHPUT_EFFICIENCY = 0.95
_FORGET = 0.998  # a memory of 500 steps: with 10% noise in the times, ``a`` is known to about 3% of a step
_MIN_SPREAD = 0.01  # of the sizes: squared standard deviation over squared mean
_PROBE = 0.7  # at the efficient size, a step of 0.7 of it loses 2%
_MAX_MOVE = 1.5  # the fit says little about sizes far from the measured ones
_DECIDE_EVERY = 16
_WINDOW = 128
_WORTH_TELLING = 0.2
_WORTH_TELLING_JOBS = 0.5  # of a small number that follows the queue


class ObjectiveKind(StrEnum):
    """What the budget is moved for."""

    THROUGHPUT = "throughput"
    P95_LATENCY_S = "p95_latency_s"
    P95_TTFT_S = "p95_ttft_s"
    P95_ITL_S = "p95_itl_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What the operator declared: throughput, or a target in seconds for the 95th percentile.

    Attributes:
        kind: The measure: latency of the whole request, time to the first increment, or time between increments.
        target_s: The target; unused for throughput.
    """

    kind: ObjectiveKind = ObjectiveKind.THROUGHPUT
    target_s: float = math.inf


class StepTime:
    """Fits ``seconds = a + b * units`` by least squares with forgetting."""

    def __init__(self) -> None:
        self._n = self._u = self._uu = self._t = self._ut = 0.0

    def observe(self, units: int, seconds: float) -> None:
        """Adds one measured step."""
        self._n = self._n * _FORGET + 1.0
        self._u = self._u * _FORGET + units
        self._uu = self._uu * _FORGET + units * units
        self._t = self._t * _FORGET + seconds
        self._ut = self._ut * _FORGET + units * seconds

    @property
    def spread(self) -> float:
        """How much the sizes of the steps differ: their squared standard deviation over their squared mean."""
        return max(0.0, self._n * self._uu / (self._u * self._u) - 1.0) if self._u > 0.0 else 0.0

    @property
    def fit(self) -> tuple[float, float]:
        """(fixed seconds, seconds per unit); all is fixed if larger steps take no longer.

        Says little while `spread` is small.
        """
        spread = self._n * self._uu - self._u * self._u
        if spread <= 0.0:
            return (0.0, 0.0)
        slope = (self._n * self._ut - self._u * self._t) / spread
        if slope <= 0.0:
            return (self._t / self._n, 0.0)
        return (max(0.0, (self._t - slope * self._u) / self._n), slope)


class StepBudget:
    """The present budget of one replica. Owner: the device thread.

    Args:
        bounds: What the model allows.
        objective: What it is moved for.
        decisions: Told where it has got to.
    """

    def __init__(self, bounds: StepRange, objective: Objective, decisions: DecisionLog | None = None) -> None:
        self._decisions = decisions or DecisionLog()
        self._bounds = bounds
        self._objective = objective
        self._time = StepTime()
        self._units = float(bounds.initial_units)
        self._probing = False
        self._samples: deque[float] = deque(maxlen=_WINDOW)
        self._num_new = 0
        self._num_limited = 0
        self.share = StepShare()
        self._tell()

    @property
    def units(self) -> int:
        """How many units the next step may do."""
        if self._bounds.whole_jobs and self._objective.kind is ObjectiveKind.THROUGHPUT:
            return self._bounds.max_units
        probe = 1.0
        if self._probing:
            probe = _PROBE if self._units * _PROBE >= self._bounds.min_units else 1.0 / _PROBE
        return max(self._bounds.min_units, min(self._bounds.max_units, int(self._units * probe)))

    @property
    def objective(self) -> Objective:
        """What the budget is moved for."""
        return self._objective

    def learn(self, steps: Iterable[MeasuredStep]) -> None:
        """Takes in steps that were timed before the first request."""
        for step in steps:
            self.share.observe(step.batch_key, step.units, step.seconds)

    def observe_step(self, units: int, seconds: float, *, limited: bool, key: object = None) -> None:
        """Feeds one measured step.

        Args:
            units: Its work.
            seconds: It took.
            limited: The budget kept it from doing more.
            key: Its batch key.
        """
        if self._bounds.whole_jobs:
            self.share.observe(key, units, seconds)
        self._time.observe(units, seconds)
        self._num_new += 1
        self._num_limited += limited
        if self._num_new >= _DECIDE_EVERY:
            self._decide()
            self._num_new = self._num_limited = 0

    def share_step(self, key: object, sizes: Sequence[int]) -> int:
        """How many of the jobs that want a step share it; see `StepShare.choose`."""
        count = self.share.choose(key, sizes)
        if len(sizes) > 1:
            self._decisions.moved(
                "jobs_per_step",
                count,
                lambda: f"{len(sizes)} jobs want a step, of {sum(sizes)} units together",
                objective="least time until all that wait are done; at least 1 and at most what the memory allows",
                least=_WORTH_TELLING_JOBS,
            )
        return count

    def observe_latency(self, kind: ObjectiveKind, seconds: float) -> None:
        """Feeds one measured latency; only the objective's own kind counts."""
        if kind is self._objective.kind:
            self._samples.append(seconds)

    def p95_s(self) -> float | None:
        """The measured 95th percentile, or None while there are fewer than 20 samples."""
        if len(self._samples) < 20:
            return None
        return sorted(self._samples)[int(0.95 * (len(self._samples) - 1))]

    def _decide(self) -> None:
        fitted = self._time.spread >= _MIN_SPREAD
        self._probing = not fitted and not self._probing
        if not fitted and self._time.spread < _MIN_SPREAD / 10.0:
            return
        wanted = self._wanted_units()
        if wanted > self._units and self._num_limited * 2 <= self._num_new:
            return  # the present budget does not bind: nothing says what a larger one would do
        moved = self._units + 0.25 * (wanted - self._units)
        moved = max(self._units / _MAX_MOVE, min(self._units * _MAX_MOVE, moved))
        self._units = max(self._bounds.min_units, min(self._bounds.max_units, moved))
        self._tell()

    def _tell(self) -> None:
        self._decisions.moved(
            "step_budget_units", self._units, self._reason, objective=self._declared, least=_WORTH_TELLING
        )

    @property
    def _declared(self) -> str:
        kind, target_s = self._objective.kind, self._objective.target_s
        target = kind.value if kind is ObjectiveKind.THROUGHPUT else f"{kind.value} <= {target_s:g}"
        return f"{target}; {self._bounds.min_units}..{self._bounds.max_units} units"

    def _reason(self) -> str:
        fixed_s, per_unit_s = self._time.fit
        limited = self._num_limited * 2 > self._num_new
        p95_s = self.p95_s()
        measured = "" if p95_s is None else f", p95 is {p95_s:.3g} s"
        return (
            f"a step takes {1e3 * fixed_s:.3g} ms and {1e6 * per_unit_s:.3g} us a unit{measured}; "
            f"{'more work waits than a step does' if limited else 'steps do all that waits'}"
        )

    def _wanted_units(self) -> float:
        fixed_s, per_unit_s = self._time.fit
        efficient = _THROUGHPUT_EFFICIENCY / (1.0 - _THROUGHPUT_EFFICIENCY) * _units_for(fixed_s, per_unit_s)
        kind, target_s = self._objective.kind, self._objective.target_s
        if kind is ObjectiveKind.THROUGHPUT:
            return efficient
        if kind is ObjectiveKind.P95_ITL_S:
            return min(efficient, _units_for(target_s - fixed_s, per_unit_s))
        # A request waits for the step in progress and then for its own: one step may take half of the target.
        return min(self._moved_by_p95(efficient), _units_for(target_s / 2.0 - fixed_s, per_unit_s))

    def _moved_by_p95(self, efficient: float) -> float:
        p95_s = self.p95_s()
        if p95_s is None or p95_s <= self._objective.target_s:
            return efficient
        self._samples.clear()  # the next decision must be about what this one does
        # Over the target. With a standing queue the wait dominates, and only throughput shortens it; without one the
        # steps themselves are too long.
        if self._num_limited * 2 > self._num_new:
            return max(efficient, self._units * 1.5)
        return self._units * 0.5


def _units_for(seconds: float, per_unit_s: float) -> float:
    """How many units fit a time; negative for none, without end if units cost nothing."""
    if per_unit_s <= 0.0:
        return math.copysign(math.inf, seconds)
    return seconds / per_unit_s
