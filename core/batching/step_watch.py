"""Tells those who watch a replica what its steps do: who joined the running batch, who left it and why, what each step cost.

Ids, lengths and costs only: nothing of what a client sent. Made when somebody begins to watch and dropped when nobody does
any more, so that a step which nobody watches pays for one comparison.
"""

from __future__ import annotations

import itertools
from collections import deque

import msgspec

from sixfold.core.batching.entry import Entry, Phase
from sixfold.core.batching.selection import Selection

_MAX_EVENTS = 4096
_UNBOUNDED_UNITS = 1 << 39
"""A budget beyond this binds nothing: the model has its own (`EngineAdapter`)."""

DONE = "done"
PREEMPTED = "preempted"


class Joined(msgspec.Struct, frozen=True, tag="j", array_like=True, kw_only=True):
    """A sequence runs from the next `Stepped` on. Those who know of it already may hear so again.

    Attributes:
        sequence: Its number in this watch.
        request: The same for all sequences of a request; rises with arrival.
        request_id: The replica's own name of the request.
        tenant: Whose request it is.
        units: The whole work of the request as admission guessed it.
        waited_s: From ready to run until its request's first step.
    """

    sequence: int
    request: int
    request_id: str
    tenant: str
    units: int
    waited_s: float


class Stepped(msgspec.Struct, frozen=True, tag="s", array_like=True, kw_only=True):
    """A step was done.

    Attributes:
        number: Of the replica's steps.
        at_s: When it ended, monotonic.
        seconds: How long the device was busy with it.
        units: Work done.
        budget_units: Work that it could have done; None where the model has a budget of its own.
        num_waiting: Requests that no step has served yet.
        rows: Each sequence of the step with the units that it was granted.
    """

    number: int
    at_s: float
    seconds: float
    units: int
    budget_units: int | None
    num_waiting: int
    rows: tuple[tuple[int, int], ...]


class Left(msgspec.Struct, frozen=True, tag="l", array_like=True, kw_only=True):
    """A sequence runs no more.

    Attributes:
        sequence: Its number in this watch.
        step: The last step that was done before.
        reason: ``done``, ``preempted`` (it lost its memory and waits again), or the code of the error that ended its request.
    """

    sequence: int
    step: int
    reason: str


StepNews = Joined | Stepped | Left


class StepWatch:
    """News of one replica's batch, bounded: who does not take them in time loses the oldest.

    Owner: the device thread, but for `take`, which one other thread may call.

    Args:
        max_events: How many are kept for `take`.
    """

    def __init__(self, max_events: int = _MAX_EVENTS) -> None:
        self._news: deque[StepNews] = deque(maxlen=max_events)
        self._numbers: dict[Entry, int] = {}  # of sequences that run
        self._next = itertools.count()
        self._step = 0
        self._num_dropped = 0

    def stepped(self, number: int, selection: Selection, *, at_s: float, seconds: float, num_waiting: int) -> None:
        """A step is settled; its outcomes are not applied yet."""
        for entry in [entry for entry in self._numbers if entry.phase is Phase.WAITING]:
            self.left(entry, PREEMPTED)
        rows = tuple((self._number(entry), units) for entry, units in selection.entries.items() if not entry.released)
        self._step = number
        budget_units = selection.units + selection.units_left
        self._tell(
            Stepped(
                number=number,
                at_s=at_s,
                seconds=seconds,
                units=selection.units,
                budget_units=None if budget_units >= _UNBOUNDED_UNITS else budget_units,
                num_waiting=num_waiting,
                rows=rows,
            )
        )

    def left(self, entry: Entry, reason: str) -> None:
        """A sequence leaves; one that was in no step yet is not spoken of."""
        number = self._numbers.pop(entry, None)
        if number is not None:
            self._tell(Left(sequence=number, step=self._step, reason=reason))

    def take(self) -> tuple[list[StepNews], int]:
        """What has happened since the last call, and how many news were lost since the watch began. [another thread]"""
        news = self._news
        return [news.popleft() for _ in range(len(news))], self._num_dropped

    def retell(self) -> None:
        """Tells once more of all that run, for somebody who begins to watch beside others."""
        for entry, number in self._numbers.items():
            self._tell_joined(entry, number)

    def _number(self, entry: Entry) -> int:
        number = self._numbers.get(entry)
        if number is None:
            number = self._numbers[entry] = next(self._next)
            self._tell_joined(entry, number)
        return number

    def _tell_joined(self, entry: Entry, number: int) -> None:
        state = entry.state
        self._tell(
            Joined(
                sequence=number,
                request=state.order,
                request_id=state.request.request_id,
                tenant=state.request.tenant,
                units=state.estimated_units,
                waited_s=state.timing().queue_s,
            )
        )

    def _tell(self, event: StepNews) -> None:
        if len(self._news) == self._news.maxlen:
            self._num_dropped += 1
        self._news.append(event)
