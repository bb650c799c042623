"""Chooses the sequences of each step. Pure in time: the clock is an argument, and the model is asked, never called to run.

The invariants of `select`:

- One batch key a step, chosen by the fair order over all that run and the one that waits at the head, so that shapes
  share the device fairly.
- Within the key, indivisible running work goes first, then divisible running work and newcomers in fair order, so that a
  long divisible sequence does not keep short ones out. The first of the order gets in whatever its size.
- The sequence, waiting or running, that was left out longest decides every fourth step once it is out of patience, and
  then goes before the fair order: its wait is bounded whatever arrives after it, and an overloaded replica still shares
  by weight. If it cannot start, nothing else starts before it has; all fit in the end, because what runs ends.
- A running sequence whose cost is None works elsewhere: it keeps its place, and the step is chosen as if it were not there.
- Memory is taken from the sequence that started last, so the one that started first always progresses: no livelock. Who
  loses its memory starts again before anything else starts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from sixfold.core.batching.budget import StepBudget
from sixfold.core.batching.costs import Costs
from sixfold.core.batching.entry import Entry, Phase, RequestState
from sixfold.core.batching.fair_queue import FairQueue
from sixfold.core.batching.model import StepModel
from sixfold.core.batching.selection import Selection, is_divisible, key_of
from sixfold.core.messages import Cost

# One step in so many is decided by the sequence that was left out longest, once it is out of patience.
_DECIDER_EVERY = 4
# How many that wait are looked at for one that could start now; bounds the time of a step under overload.
_MAX_NEWCOMERS = 64


class Scheduler:
    """The running batch and the waiting sequences of one replica. Owner: the device thread.

    Args:
        model: Asked for costs and memory.
        budget: How much one step may do.
        max_running_sequences: How many sequences may run at once.
        patience_s: Wait after which a sequence goes before the fair order.
    """

    def __init__(
        self, model: StepModel[Any, Any, Any], budget: StepBudget, *, max_running_sequences: int, patience_s: float
    ) -> None:
        self._model = model
        self._costs = Costs(model)
        self._budget = budget
        self._max_running = max_running_sequences
        self._patience_s = patience_s
        self._num_since_decider = 0
        self._running_decides = False
        # Nothing starts before these: they lost their memory, or were out of patience and could not start. Others would
        # take the room that they wait for, again and again.
        self._blocked: deque[Entry] = deque()
        self._in_flight: Container[Entry] = ()
        self.queue = FairQueue(patience_s)
        self.num_preemptions = 0
        self.num_elsewhere = 0  # of those that run, as of the last selection
        self.running: dict[Entry, None] = {}  # an ordered set: in the order in which they started

    @property
    def has_work(self) -> bool:
        """Whether a selection could choose something; what the last one found elsewhere must come back by itself."""
        waits = self.queue.num_waiting > 0 or self._costs.any_wrong
        return waits or any(entry.cost is not None for entry in self.running)

    def add(self, entry: Entry) -> None:
        """A prepared sequence waits."""
        self.queue.push(entry)

    def remove(self, entry: Entry) -> None:
        """The sequence leaves, whatever its phase; harmless when it has left."""
        if entry in self._blocked:
            self._blocked.remove(entry)
        self._costs.forget(entry)
        if entry.phase is Phase.RUNNING:
            del self.running[entry]
            entry.phase = Phase.GONE
        elif entry.phase is Phase.WAITING:
            self.queue.remove(entry, Phase.GONE)

    def close_request(self, state: RequestState) -> None:
        """Forgets an ended request and all its sequences."""
        for entry in state.entries:
            self.remove(entry)
        self.queue.close(state)

    def select(self, now_s: float, in_flight: Container[Entry] = ()) -> Selection:
        """The next step's batch; empty when there is nothing to do. What is in ``rejected`` can never run.

        With something rejected the batch is empty: end those requests, then select again.

        Args:
            now_s: The time.
            in_flight: Sequences whose step has begun and is not settled. It may be their last.
        """
        self._in_flight = in_flight
        ready = self._ready(now_s)
        decider = self._decider(now_s, ready)
        head = self.queue.head() if decider is None else decider
        if head is not None:
            self._costs.ask(head)
        if self._costs.any_wrong:  # before anything is granted
            return self._costs.refuse()
        selection = self._open(self._choose_key(ready, head, decider), ready)
        deferred = self._continue_running(ready, selection, head, decider)
        if not selection.preempted and not selection.rejected:
            self._start_waiting(selection, decider)
        self._grant_running(selection, deferred)
        ready = [entry for entry in ready if entry.phase is Phase.RUNNING]  # others lost their memory
        if not selection.entries and not selection.rejected and ready:
            # The key was that of a waiting sequence which can't start yet: what runs must go on, or it never will.
            selection = self._open(key_of(min(ready, key=self._order)), ready)
            self._continue_running(ready, selection, None, None)
        self._advance(selection, now_s)
        return selection

    def _open(self, key: object, ready: Sequence[Entry]) -> Selection:
        """An empty step of this key, with the units that it may do."""
        return Selection(self._budget.units, key)

    def _ready(self, now_s: float) -> list[Entry]:
        """What runs and asks for a step; the others work elsewhere."""
        ready = self._costs.ask_running(self.running, now_s)
        self.num_elsewhere = len(self.running) - len(ready)
        return ready

    def _advance(self, selection: Selection, now_s: float) -> None:
        granted = selection.entries
        for entry in granted:
            entry.waiting_since_s = now_s
        unmet = {
            entry.state: None
            for entry in self.running
            if entry.cost is not None and granted.get(entry, 0) < entry.cost.units
        }
        self.queue.advance({entry.state: None for entry in granted}, unmet)

    def _decider(self, now_s: float, ready: Sequence[Entry]) -> Entry | None:
        """The sequence that decides this step against the fair order, if it is the turn of those out of patience."""
        self._num_since_decider += 1
        if self._blocked and not ready:
            return self._blocked[0]
        if self._num_since_decider < _DECIDER_EVERY:
            return None
        waiting = self._blocked[0] if self._blocked else self.queue.overdue(now_s)
        late = [entry for entry in ready if now_s - entry.waiting_since_s > self._patience_s]
        if waiting is None and not late:
            return None
        self._num_since_decider = 0
        # By turns: under overload what waits has always waited longer than what runs, and would shut it out.
        self._running_decides = bool(late) and (waiting is None or not self._running_decides)
        return min(late, key=lambda entry: entry.waiting_since_s) if self._running_decides else waiting

    def _choose_key(self, ready: Sequence[Entry], head: Entry | None, decider: Entry | None) -> object:
        if decider is not None:
            return key_of(decider)
        if head is not None and not ready:
            return key_of(head)
        newcomer = self._newcomer(ready, head)
        candidates = [*ready] if newcomer is None else [*ready, newcomer]
        keys = {key_of(entry) for entry in candidates}
        return key_of(min(candidates, key=self._order)) if len(keys) > 1 else next(iter(keys), None)

    def _newcomer(self, ready: Sequence[Entry], head: Entry | None) -> Entry | None:
        """The first that waits and could start in a step of its own key.

        One that could not must not choose the key, or only what runs with that key would go on while it waits.
        """
        if head is None or self._blocked or len(self.running) >= self._max_running:
            return None
        taken: Counter[object] = Counter()  # by indivisible running work, which goes first
        for entry in ready:
            if entry.cost is not None and not is_divisible(entry):
                taken[entry.cost.batch_key] += entry.cost.units
        if self._has_room(head, taken):
            return head
        for entry in islice(self.queue.in_order(), _MAX_NEWCOMERS):
            self._costs.ask(entry)
            if self._has_room(entry, taken):
                return entry
        return None

    def _has_room(self, entry: Entry, taken: Mapping[object, int]) -> bool:
        cost = entry.cost
        if cost is None:
            return False
        used = taken.get(cost.batch_key, 0)
        return used == 0 or used + cost.min_units <= self._budget.units

    def _order(self, entry: Entry) -> tuple[float, ...]:
        """The fair order; between sequences of one request the one goes first that was left out longest."""
        return (*self.queue.tag(entry.state), entry.waiting_since_s)

    def _continue_running(
        self, ready: Sequence[Entry], selection: Selection, head: Entry | None, decider: Entry | None
    ) -> list[Entry]:
        """Grants to what runs; returns the divisible ones whose turn is after that of the head, which waits."""
        entries = [entry for entry in ready if key_of(entry) == selection.key]
        num_first = len(entries)
        if sum(entry.cost.units for entry in entries if entry.cost is not None) > selection.units_left:
            entries.sort(key=lambda entry: (entry is not decider, is_divisible(entry), *self._order(entry)))
            joins = head is not None and head.phase is Phase.WAITING and key_of(head) == selection.key
            if head is not None and joins and len(self.running) < self._max_running:
                first = [
                    entry for entry in entries if not (is_divisible(entry) and self._precedes(head, entry, decider))
                ]
                num_first = len(first)
        self._grant_running(selection, entries[:num_first])
        return entries[num_first:]

    def _precedes(self, head: Entry, entry: Entry, decider: Entry | None) -> bool:
        return head is decider or self._order(head) < self._order(entry)

    def _grant_running(self, selection: Selection, entries: Iterable[Entry]) -> None:
        for entry in entries:
            cost = entry.cost
            # one of these may have lost its memory to another meanwhile
            if entry.phase is not Phase.RUNNING or cost is None or not selection.accepts(cost):
                continue
            units = self._reserve_or_preempt(entry, cost, selection.wanted_units(cost), selection)
            if units > 0:
                self._grant(selection, entry, units)

    def _grant(self, selection: Selection, entry: Entry, units: int) -> None:
        selection.add(entry, units)
        self.queue.charge(entry.state, units)  # at once, so that others are next for the rest of the step

    def _reserve_or_preempt(self, entry: Entry, cost: Cost, wanted: int, selection: Selection) -> int:
        """Memory for a running sequence, if need be that of sequences that started later; 0 if it lost its own."""
        while (units := self._model.reserve(entry.sequence, wanted)) < cost.min_units:
            if len(self.running) == 1:
                if entry in self._in_flight:
                    return 0
                self.remove(entry)  # preempting itself would only bring it here again
                selection.reject(entry)
                return 0
            victim = next(other for other in reversed(self.running) if other.cost is not None)
            if victim is entry and any(other.cost is None for other in self.running):
                return 0  # it waits for the memory of what is elsewhere and will leave
            self._preempt(victim, selection)
            if victim is entry:
                return 0
        return min(units, wanted)

    def _preempt(self, entry: Entry, selection: Selection) -> None:
        self.queue.charge(entry.state, -selection.remove(entry))
        self._model.preempt(entry.sequence)
        del self.running[entry]
        selection.preempted = True
        entry.state.num_preemptions += 1
        self.num_preemptions += 1
        entry.waiting_since_s = entry.state.request.arrived_s
        self.queue.push(entry, front=True)
        self._blocked.appendleft(entry)  # it started before those that lost their memory before it

    def _start_waiting(self, selection: Selection, decider: Entry | None) -> None:
        if not self._blocked and decider is not None and decider.phase is Phase.WAITING:
            self._blocked.append(decider)
        while self._blocked:
            first = self._blocked[0]
            self._costs.ask(first)
            if not self._start(first, selection):
                return
            self._blocked.popleft()
        while (entry := self.queue.head()) is not None:
            self._costs.ask(entry)
            if key_of(entry) != selection.key:
                self._start_others_of_key(selection)
                return
            if not self._start(entry, selection):
                return

    def _start_others_of_key(self, selection: Selection) -> None:
        for entry in self.queue.in_order():
            self._costs.ask(entry)
            if key_of(entry) == selection.key and not self._start(entry, selection):
                return

    def _start(self, entry: Entry, selection: Selection) -> bool:
        """Lets a waiting sequence join; False when it must wait on, and nothing behind it may pass, or was rejected."""
        cost = entry.cost
        if cost is None or len(self.running) >= self._max_running or not selection.accepts(cost):
            return False
        wanted = selection.wanted_units(cost)
        units = self._model.reserve(entry.sequence, wanted)
        if units < cost.min_units:
            if not self.running:
                self.remove(entry)
                selection.reject(entry)
            return False
        self.queue.remove(entry, Phase.RUNNING)
        entry.was_stepped = True
        self.running[entry] = None
        self._grant(selection, entry, min(units, wanted))
        return True
