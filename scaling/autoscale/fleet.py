"""What the autoscaler knows and what it answers; all of it values that can be logged, sent and replayed."""

from __future__ import annotations

from dataclasses import dataclass, field

from sixfold.core.autoscaling.load import ModelLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """One service at one moment.

    Attributes:
        loads: One per ready replica; ``num_in_flight`` averaged since the last decision where the caller can.
        num_starting: Replicas that were ordered and do not take requests yet.
        num_held: Requests that wait in front because no replica is there.
        ttft_s: Time to the first increment at the promised percentile, over about a window; None where nothing ended.
        e2e_s: The same of whole requests.
    """

    loads: tuple[ModelLoad, ...] = ()
    num_starting: int = 0
    num_held: float = 0.0
    ttft_s: float | None = None
    e2e_s: float | None = None

    @property
    def num_ready(self) -> int:
        """Replicas that take requests."""
        return len(self.loads)

    @property
    def num_provisioned(self) -> int:
        """Replicas that are paid for and stay."""
        return len(self.loads) + self.num_starting


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Demand at one moment, in replicas that it would keep busy at the targets; by signal."""

    at_s: float
    requests: float
    work: float = 0.0
    cache: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What one decision hands to the next.

    Attributes:
        points: Demand within the window.
        peaks: ``(at_s, wanted)`` within the scale-down delay; falling in value, so that the first is the largest.
        panic_s: When the last surge was seen; None outside of a panic.
        panic_peak: Most replicas wanted in this panic.
        shrunk_s: When replicas last left.
        share: What a replica is given, in parts of its targets; moved where there is an objective.
        share_moved_s: When that was.
        buckets: Closed buckets of demand for the forecast, oldest first.
        bucket_start_s: Start of the open bucket; None before the first point.
        bucket_sum: Demand in the open bucket.
        bucket_points: Points in it.
    """

    points: tuple[Point, ...] = ()
    peaks: tuple[tuple[float, int], ...] = ()
    panic_s: float | None = None
    panic_peak: int = 0
    shrunk_s: float | None = None
    share: float = 1.0
    share_moved_s: float | None = None
    buckets: tuple[float, ...] = ()
    bucket_start_s: float | None = None
    bucket_sum: float = 0.0
    bucket_points: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How many replicas there should be, and why.

    Attributes:
        num_replicas: Ready and starting ones together.
        reason: A sentence for the log and the dashboard.
        panicking: Whether nothing shrinks because of a surge.
        state: For the next decision.
    """

    num_replicas: int
    reason: str
    panicking: bool = False
    state: State = field(default_factory=State)
