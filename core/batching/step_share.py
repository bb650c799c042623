"""Learns how long steps take and from it how many jobs should share one: company must not make anybody late.

For whole jobs (pictures, clips) of which a client wants the last step only. Of ``n`` jobs that want a step, ``k`` share it,
in order of arrival. Were no more to come, the jobs would go through in ``n / k`` groups and end after
``c(k) * (n / k + 1) / 2`` steps' worth on average, where ``c(k)`` is the time of a step: the least of that is the best
for those who wait now. Each second that a step takes also delays who comes later in the same busy period, so what
clears the queue weighs more: ``c(k) * (3 n / k + 1)`` is made least. That gives

- where steps of more cost as much as steps of one, all share;
- where rows gain nothing (``c(k) = k c(1)``, a CPU), one job at a time in order of arrival, which is first come, first
  served to the letter, whatever the load. With little variance of the lengths no other order has shorter tails;
- between them, more company the longer the queue: about the square root of ``n`` times fixed over marginal cost.

With a weight of 1 half of the throughput was left where a row costs half a step, with 5 the 95th percentile became longer
than one by one where it costs 0.7; `tests/core/batching/test_step_share.py` holds the simulation.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

_QUEUE_WEIGHT = 3.0
_BUCKETS_PER_OCTAVE = 8  # sizes within 9% count as one
_MEMORY = 5  # times of a size, of which the median counts: compilation and other requests' decoding make outliers
_TRUSTED = 2  # a size with fewer times is unknown; the first step of a shape is rarely a usual one
_MAX_CURVES = 64
_PROBE_EVERY = 256  # steps, after which a size beside the chosen one is tried again: devices change


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """A step that was timed outside of the loop.

    Attributes:
        batch_key: As of its sequences' costs.
        units: Its work.
        seconds: It took.
    """

    batch_key: object
    units: int
    seconds: float


class StepCurve:
    """Seconds of a step by its units: measured medians, made monotone, straight lines between."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._sizes: dict[int, int] = {}  # the latest units of a bucket
        self._points: list[tuple[int, float]] | None = None

    def observe(self, units: int, seconds: float) -> None:
        """Adds one measured step."""
        bucket = round(math.log2(units) * _BUCKETS_PER_OCTAVE)
        self._times.setdefault(bucket, deque(maxlen=_MEMORY)).append(max(seconds, 1e-9))
        self._sizes[bucket] = units
        self._points = None

    @property
    def points(self) -> Sequence[tuple[int, float]]:
        """(units, seconds) of the sizes that are known; never falling, as more work takes no less time but by noise."""
        if self._points is None:
            known = [
                (self._sizes[bucket], statistics.median(times))
                for bucket, times in sorted(self._times.items())
                if len(times) >= _TRUSTED
            ]
            self._points = [
                (units, top) for (units, _), top in zip(known, accumulate((s for _, s in known), max), strict=True)
            ]
        return self._points

    def seconds(self, units: float) -> float | None:
        """The expected time; None if nothing is known. Beyond the largest known size the last slope goes on; with one known
        size more is taken to be free, so that it is tried."""
        points = self.points
        if not points:
            return None
        index = bisect_left(points, units, key=lambda point: point[0])
        if index == 0:
            return points[0][1]
        if index < len(points):
            (low, low_s), (high, high_s) = points[index - 1], points[index]
        elif len(points) == 1:
            return points[0][1]
        else:
            (low, low_s), (high, high_s) = points[-2], points[-1]
        return low_s + (high_s - low_s) * (units - low) / (high - low)


class StepShare:
    """Says how many of those that want a step should share it. Owner: the device thread."""

    def __init__(self) -> None:
        self._all = StepCurve()
        self._curves: OrderedDict[object, StepCurve] = OrderedDict()
        self._num_since_probe = 0
        self._probes_up = True

    def observe(self, key: object, units: int, seconds: float) -> None:
        """Feeds one measured step of a batch key."""
        self._all.observe(units, seconds)
        curve = self._curves.pop(key, None) or StepCurve()
        curve.observe(units, seconds)
        self._curves[key] = curve
        if len(self._curves) > _MAX_CURVES:
            self._curves.popitem(last=False)

    def choose(self, key: object, sizes: Sequence[int]) -> int:
        """How many of the jobs, first come first, should share the next step of a key: at least 1 of any.

        Args:
            key: Their batch key.
            sizes: Units of the next step of all that want one, in their order.
        """
        totals = list(accumulate(sizes))
        if not totals:
            return 0
        seconds = self._expected(key, totals)
        if seconds is None:
            return 1
        num = len(totals)
        # Twice what is known is far enough to look: beyond it the slope is a guess.
        known = self._largest_known(key)
        ranked = [
            (time_s * (_QUEUE_WEIGHT * num / count + 1.0), count)
            for count, (total, time_s) in enumerate(zip(totals, seconds, strict=True), 1)
            if count == 1 or total <= 2 * known
        ]
        return self._probed(min(ranked)[1], num)

    def _expected(self, key: object, totals: Sequence[int]) -> list[float] | None:
        own = self._curves.get(key)
        if own is None or not own.points:
            found = [self._all.seconds(total) for total in totals]
            return [each for each in found if each is not None] or None
        if len(own.points) > 1 or len(self._all.points) < 2:
            return [own.seconds(total) or 0.0 for total in totals]
        # One known size says how this key compares with the others, whose curve says the rest.
        units, seconds = own.points[0]
        scale = seconds / (self._all.seconds(units) or seconds)
        return [scale * (self._all.seconds(total) or seconds) for total in totals]

    def _largest_known(self, key: object) -> int:
        own = self._curves.get(key)
        return max((points[-1][0] for points in (self._all.points, own.points if own else ()) if points), default=0)

    def _probed(self, count: int, num: int) -> int:
        """Now and then a size beside the chosen one, so that what is believed of it stays true."""
        self._num_since_probe += 1
        if self._num_since_probe < _PROBE_EVERY or num == 1:
            return count
        self._num_since_probe = 0
        self._probes_up = not self._probes_up or count == 1
        return min(num, 2 * count) if self._probes_up else max(1, count // 2)
