"""Narrows the candidates before another policy chooses: to the session's replica, the adapter's, the region's."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sixfold.scaling.route.policy import Candidate, Choice, Policy, RequestShape

_SPILL_OVER_REQUESTS = 4
"""So many requests above its share a replica may have and still keep its sessions and adapters."""


@dataclass(slots=True)
class _Seat:
    replica_id: str
    used_at_s: float


class Affinity:
    """Keeps sessions, adapters and regions together while no replica has much more than its share.

    A session goes where it was; among the rest, replicas that have loaded the adapter, then those of the region, go first. Each
    wish is dropped when its replicas have more than twice their share of the requests: a hot spot is worse than a cold cache.

    Args:
        inner: Chooses among what is left.
        session_ttl_s: A session that was silent for so long is forgotten.
        max_sessions: Beyond these the longest silent is forgotten.
    """

    def __init__(self, inner: Policy, *, session_ttl_s: float = 1800.0, max_sessions: int = 100_000) -> None:
        self._inner = inner
        self._session_ttl_s = session_ttl_s
        self._max_sessions = max_sessions
        self._seats: OrderedDict[bytes, _Seat] = OrderedDict()

    def choose(self, request: RequestShape, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """See `Policy.choose`."""
        bearable = _bearable(candidates)
        seat = None if request.session is None else self._seats.get(_digest(request.session))
        if seat is not None and now_s - seat.used_at_s <= self._session_ttl_s:
            for index, candidate in enumerate(candidates):
                if candidate.replica_id == seat.replica_id and bearable(candidate):
                    return Choice(index=index, reason="session")
        left = list(range(len(candidates)))
        for wanted in (_has_adapter(request), _in_region(request)):
            if wanted is not None:
                left = [index for index in left if wanted(candidates[index]) and bearable(candidates[index])] or left
        choice = self._inner.choose(request, [candidates[index] for index in left], now_s)
        return Choice(index=left[choice.index], reason=choice.reason, cached=choice.cached)

    def routed(self, request: RequestShape, replica_id: str, now_s: float) -> None:
        """See `Policy.routed`."""
        if request.session is not None:
            session = _digest(request.session)
            self._seats[session] = _Seat(replica_id, now_s)
            self._seats.move_to_end(session)
            if len(self._seats) > self._max_sessions:
                self._seats.popitem(last=False)
        self._inner.routed(request, replica_id, now_s)

    def computed(self, request: RequestShape, replica_id: str) -> None:
        """See `Policy.computed`."""
        self._inner.computed(request, replica_id)

    def forget(self, replica_id: str) -> None:
        """See `Policy.forget`. Its sessions stay where they were: the replica that takes its place may be there already."""
        self._inner.forget(replica_id)


def _digest(session: str) -> bytes:
    """What is kept of a session's name: clients may choose long ones, and many."""
    return hashlib.blake2b(session.encode(errors="surrogatepass"), digest_size=8).digest()


def _bearable(candidates: Sequence[Candidate]) -> Callable[[Candidate], bool]:
    num_running = sum(candidate.num_running for candidate in candidates)
    weight = sum(candidate.weight for candidate in candidates)

    def bearable(candidate: Candidate) -> bool:
        share = num_running * candidate.weight / weight
        return candidate.num_running <= 2.0 * share + _SPILL_OVER_REQUESTS

    return bearable


def _has_adapter(request: RequestShape) -> Callable[[Candidate], bool] | None:
    adapter = request.adapter
    return None if adapter is None else lambda candidate: adapter in candidate.adapters


def _in_region(request: RequestShape) -> Callable[[Candidate], bool] | None:
    region = request.region
    return None if region is None else lambda candidate: candidate.region == region
