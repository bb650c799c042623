"""The scheduler of whole jobs: first come, first served, with as much company as delays nobody.

What differs from the fair order of `Scheduler`, which shares each step between all that run:

- A step is for the job that came first, of those that run and the one that is next to start; others of its batch key join
  it, in order, as far as `StepShare` says that they should. A job that was begun is not put off for a later one.
- Weights and priorities decide who starts next. One start in four is that of the longest wait, once it is out of patience;
  it interrupts nobody. Jobs end, so every wait is bounded.

Turns among many would end all of them late: with lengths that vary little, sharing a device that gains nothing by it has a
longer mean and a longer tail than one after another (M/G/1: processor sharing takes S / (1 - load) for a job of S, in
order of arrival it takes S plus a wait that shrinks with the variance).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from sixfold.core.batching.entry import Entry, Phase
from sixfold.core.batching.scheduler import Scheduler
from sixfold.core.batching.selection import Selection, key_of

_PATIENT_STARTS = 4
_MAX_LOOKED_AT = 64


class JobScheduler(Scheduler):
    """See the module. Owner: the device thread."""

    _num_started = 0  # since the longest wait was let in

    def _decider(self, now_s: float, ready: Sequence[Entry]) -> Entry | None:
        overdue = None if self._blocked else self.queue.overdue(now_s)
        if overdue is not None and self._num_started >= _PATIENT_STARTS:
            self._num_started = 0
            self._blocked.append(overdue)  # the next to start
        return self._blocked[0] if self._blocked and not ready else None

    def _choose_key(self, ready: Sequence[Entry], head: Entry | None, decider: Entry | None) -> object:
        candidates = list(ready)
        may_start = len(self.running) < self._max_running and (decider is not None or not self._blocked)
        if head is not None and (may_start or not ready):
            candidates.append(head)
        return key_of(min(candidates, key=self._order)) if candidates else None

    def _order(self, entry: Entry) -> tuple[float, ...]:
        """Arrival; between sequences of one request what runs goes first, so that it ends."""
        return (entry.state.order, entry.phase is not Phase.RUNNING)

    def _open(self, key: object, ready: Sequence[Entry]) -> Selection:
        mine = [entry for entry in ready if key_of(entry) == key]
        num_free = self._max_running - len(self.running)
        sizes = [entry.cost.units for entry in sorted(mine, key=self._order) if entry.cost is not None]
        for entry in islice(self.queue.in_order(), max(0, min(num_free, _MAX_LOOKED_AT - len(sizes)))):
            self._costs.ask(entry)
            if entry.cost is not None and entry.cost.batch_key == key:
                sizes.append(entry.cost.units)
        num_sharing = self._budget.share_step(key, sizes)
        return Selection(min(self._budget.units, sum(sizes[:num_sharing])), key)

    def _start(self, entry: Entry, selection: Selection) -> bool:
        started = super()._start(entry, selection)
        self._num_started += started
        return started
