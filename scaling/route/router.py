"""Selects and reserves in one call, so that requests of the same moment see each other and don't herd to one replica."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sixfold.scaling.route.policy import Candidate, Decision, Policy, RequestShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """What is known of a replica beside its load; see `Candidate` for the fields, and `ReplicaRecord` for its revision."""

    replica_id: str
    region: str = ""
    site: str = ""
    weight: float = 1.0
    adapters: frozenset[str] = frozenset()
    revision: str = ""


@dataclass(slots=True, kw_only=True)
class Load:
    """What is reserved at one replica.

    Attributes:
        num_running: Requests that have not ended.
        pending_units: Their work that has not ended.
        prefill_units: The part of it that comes before their first bytes.
    """

    num_running: int = 0
    pending_units: float = 0.0
    prefill_units: float = 0.0


_IDLE = Load()


class Router:
    """The book of what is reserved where. Owned by one event loop or one simulation; nothing in it waits.

    Invariant: a replica's load is the sum over the decisions that were neither completed nor failed.

    Args:
        policy: Chooses.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._loads: dict[str, Load] = {}
        self._open: dict[int, tuple[Load, RequestShape]] = {}
        self._started: set[int] = set()
        self._next_number = 0

    @property
    def num_open(self) -> int:
        """Decisions that have not ended."""
        return len(self._open)

    def num_running(self, replica_id: str) -> int:
        """Requests at a replica that have not ended."""
        return self.load(replica_id).num_running

    def load(self, replica_id: str) -> Load:
        """All that is reserved at a replica; a copy."""
        return replace(self._loads.get(replica_id, Load()))

    def select(self, request: RequestShape, replicas: Sequence[ReplicaFacts], now_s: float) -> Decision:
        """Chooses one of at least one replica and reserves it there and then.

        Args:
            request: What is asked.
            replicas: Who may take it.
            now_s: Monotonic seconds.
        """
        candidates = [self._candidate(replica) for replica in replicas]
        choice = self._policy.choose(request, candidates, now_s)
        replica_id = candidates[choice.index].replica_id
        decision = Decision(
            number=self._next_number,
            replica_id=replica_id,
            reason=choice.reason,
            cached=choice.cached,
            prefill_units=request.prompt_units * (1.0 - choice.cached),
            decode_units=float(request.output_units),
        )
        self._next_number += 1
        load = self._loads.setdefault(replica_id, Load())
        load.num_running += 1
        load.pending_units += decision.prefill_units + decision.decode_units
        load.prefill_units += decision.prefill_units
        # Without its tokens: they are many, and requests may stay open for long.
        self._open[decision.number] = (load, replace(request, token_ids=None))
        self._policy.routed(request, replica_id, now_s)
        return decision

    def started(self, decision: Decision) -> None:
        """The first byte came: the work before it is done. Harmless when it was said before or the decision has ended."""
        if decision.number in self._open and decision.number not in self._started:
            self._started.add(decision.number)
            load, request = self._open[decision.number]
            self._policy.computed(request, decision.replica_id)
            load.pending_units -= decision.prefill_units
            load.prefill_units -= decision.prefill_units

    def complete(self, decision: Decision) -> None:
        """The request has ended; harmless when said twice."""
        self._end(decision)

    def fail(self, decision: Decision) -> None:
        """The replica did not do it: its load is given back, and it does not hold the prompt for sure.

        What a policy has learnt stays: most failures are of requests, and a replica that died is forgotten as a whole.
        """
        self._end(decision)

    def retain(self, replica_ids: Iterable[str]) -> None:
        """Forgets replicas that are none of these and have nothing reserved."""
        known = frozenset(replica_ids)
        for replica_id in [each for each, load in self._loads.items() if each not in known and not load.num_running]:
            del self._loads[replica_id]

    def forget(self, replica_id: str) -> None:
        """The replica is gone, or a new process has its address: what it held is lost."""
        self._policy.forget(replica_id)

    def _end(self, decision: Decision) -> None:
        found = self._open.pop(decision.number, None)
        if found is None:
            return
        load, request = found
        load.num_running -= 1
        started = decision.number in self._started
        if not started:
            self._policy.computed(request, decision.replica_id)
        self._started.discard(decision.number)
        before_first = 0.0 if started else decision.prefill_units
        load.pending_units -= decision.decode_units + before_first
        load.prefill_units -= before_first
        if not load.num_running:
            load.pending_units = load.prefill_units = 0.0  # sums of floats don't come back to zero

    def _candidate(self, replica: ReplicaFacts) -> Candidate:
        load = self._loads.get(replica.replica_id, _IDLE)
        return Candidate(
            replica_id=replica.replica_id,
            region=replica.region,
            weight=replica.weight,
            adapters=replica.adapters,
            num_running=load.num_running,
            pending_units=load.pending_units,
        )
