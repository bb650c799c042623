"""The state of requests and sequences inside one replica. Owner: the device thread; nobody else writes to it."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from typing import Any

from sixfold.core.batching.step_log import StepLog
from sixfold.core.messages import Cost, ReplicaTrace, Request, StepGroup, Timing


class Phase(enum.Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


class RequestState:
    """A request between its admission and its last event.

    Args:
        request: What was asked.
        estimated_units: Its whole work as admission counted it.
        order: Rises with arrival; breaks ties.
    """

    __slots__ = (
        "ended",
        "entries",
        "estimated_units",
        "first_output_s",
        "first_step_s",
        "last_output_s",
        "last_step_s",
        "max_batch_sequences",
        "num_open",
        "num_preemptions",
        "num_steps",
        "order",
        "pieces_left",
        "ready_s",
        "request",
        "share",
        "step_log",
        "tenant",
        "virtual_units",
    )

    def __init__(self, request: Request[Any], estimated_units: int, order: int) -> None:
        self.request = request
        self.estimated_units = estimated_units
        self.order = order
        self.pieces_left: int | None = None  # None until it was split
        self.entries: list[Entry] = []
        self.num_open = 0
        self.ended = False
        self.virtual_units = 0.0
        self.share = request.weight * request.priority.weight  # of the device, beside others
        self.tenant: object = None  # the fair queue's own
        self.ready_s: float | None = None
        self.first_step_s: float | None = None
        self.last_step_s: float | None = None
        self.first_output_s: float | None = None
        self.last_output_s: float | None = None
        self.num_steps = 0
        self.max_batch_sequences = 0
        self.num_preemptions = 0
        self.step_log = None if request.trace_id is None else StepLog()

    @property
    def log_fields(self) -> Mapping[str, object]:
        """What a line of the log about it is to hold; the client's id is what stands before the slash."""
        request = self.request
        return {"request_id": request.request_id.partition("/")[0], "trace_id": request.trace_id}

    @property
    def complete(self) -> bool:
        """Whether every sequence was prepared and is done."""
        return self.pieces_left == 0 and self.num_open == 0

    def timing(self) -> Timing:
        """The seconds spent in each stage so far."""
        arrived_s = self.request.arrived_s
        ready_s = arrived_s if self.ready_s is None else self.ready_s
        first_s = ready_s if self.first_step_s is None else self.first_step_s
        last_s = first_s if self.last_step_s is None else self.last_step_s
        return Timing(
            prepare_s=max(0.0, ready_s - arrived_s),
            queue_s=max(0.0, first_s - ready_s),
            inference_s=max(0.0, last_s - first_s),
            num_steps=self.num_steps,
            max_batch_sequences=self.max_batch_sequences,
            num_preemptions=self.num_preemptions,
        )

    def trace(self) -> ReplicaTrace | None:
        """How its time was spent so far, if it is traced."""
        if self.step_log is None:
            return None
        return ReplicaTrace(
            process_id=os.getpid(),
            ready_s=self.since_arrival_s(self.ready_s),
            first_step_s=self.since_arrival_s(self.first_step_s),
            first_output_s=self.since_arrival_s(self.first_output_s),
            last_step_s=self.since_arrival_s(self.last_step_s),
            steps=self.step_log.groups,
            num_preemptions=self.num_preemptions,
        )

    def note_step(self, began_s: float, ended_s: float, units: int, num_sequences: int) -> None:
        """A step of so much work and so many sequences served it. Of traced requests only."""
        assert self.step_log is not None
        arrived_s = self.request.arrived_s
        self.step_log.add(
            StepGroup(
                began_s=began_s - arrived_s,
                ended_s=ended_s - arrived_s,
                units=units,
                max_batch_sequences=num_sequences,
            )
        )

    def since_arrival_s(self, at_s: float | None) -> float | None:
        """Seconds from its arrival to a moment of the same clock."""
        return None if at_s is None else at_s - self.request.arrived_s


class Entry:
    """A sequence's place in the scheduler.

    Args:
        sequence: The model's own state of it.
        state: Its request.
        now_s: When it became ready for a step.
    """

    __slots__ = ("cost", "phase", "released", "sequence", "state", "waiting_since_s", "was_stepped")

    def __init__(self, sequence: Any, state: RequestState, now_s: float) -> None:
        self.sequence = sequence
        self.state = state
        self.phase = Phase.WAITING
        self.released = False
        self.was_stepped = False  # it has been in the running batch
        self.cost: Cost | None = None  # as of the running selection
        self.waiting_since_s = now_s  # last time it was served, or became ready
