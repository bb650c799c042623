"""Weighted fair order over waiting sequences: between tenants by weight and priority, within a tenant between requests.

Two levels of start-time fair queueing. Every tenant (an API key in a priority class) and every request carries a virtual
time that grows by the units it was served, divided by its weight; the least virtual time goes first. The *floor* is the
virtual time of the present: the least of those that want more than they got. Whoever is served or starts to wait is first
brought up to the floor, so neither idleness nor small demand earns credit, and nobody starts behind another's debt. A
request of thousands of sequences therefore falls behind a small one that arrives later, and a heavy key behind a light one.

Fair order alone would let an endless supply of new keys overtake an old one for ever. `overdue` closes that hole: it tells
the sequence that has waited longest, once that is longer than the patience.

Source: Goyal, Vin and Cheng 1996, "Start-time Fair Queuing"; the starting rule is that of Linux's CFS (min_vruntime).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from sixfold.core.batching.entry import Entry, Phase, RequestState
from sixfold.core.messages import Priority

TenantKey = tuple[str, Priority]
RowT = TypeVar("RowT")

# How far `in_order` looks for sequences that fit a batch whose key is not the head's: costs a step at most 0.2 ms.
_MAX_LOOKED_AT_PER_TENANT = 64
_MAX_LOOKED_AT = 256


class _RequestQueue:
    """The waiting sequences of one request, in order."""

    __slots__ = ("entries", "in_heap", "state")

    def __init__(self, state: RequestState) -> None:
        self.state = state
        self.entries: deque[Entry] = deque()
        self.in_heap = False

    def drop_gone(self) -> None:
        while self.entries and self.entries[0].phase is not Phase.WAITING:
            self.entries.popleft()


class _Tenant:
    """The requests of one API key in one priority class."""

    __slots__ = ("floor", "heap", "in_heap", "in_idle", "key", "requests", "virtual_units")

    def __init__(self, key: TenantKey, virtual_units: float) -> None:
        self.key = key
        self.virtual_units = virtual_units
        self.floor = 0.0  # the present, among its own requests
        self.requests: dict[int, _RequestQueue] = {}
        self.heap: list[tuple[float, int, _RequestQueue]] = []
        self.in_heap = False
        self.in_idle = False

    def least(self) -> _RequestQueue | None:
        """The waiting request to serve next; repairs the heap's stale rows on the way."""
        while self.heap:
            virtual_units, order, queue = self.heap[0]
            queue.drop_gone()
            if not queue.entries:
                heapq.heappop(self.heap)
                queue.in_heap = False
            elif virtual_units != queue.state.virtual_units:
                heapq.heapreplace(self.heap, (queue.state.virtual_units, order, queue))
            else:
                return queue
        return None

    def put(self, queue: _RequestQueue) -> None:
        if not queue.in_heap:
            queue.in_heap = True
            queue.state.virtual_units = max(queue.state.virtual_units, self.floor)
            heapq.heappush(self.heap, (queue.state.virtual_units, queue.state.order, queue))


class FairQueue:
    """The waiting sequences of one replica.

    Args:
        patience_s: Wait after which a sequence is overdue.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._tenants: dict[TenantKey, _Tenant] = {}
        self._heap: list[tuple[float, int, _Tenant]] = []
        self._idle: list[tuple[float, int, _Tenant]] = []  # without requests but in debt
        self._by_wait: deque[Entry] = deque()
        self._floor = 0.0
        self._num_puts = 0
        self._num_open_requests = 0
        self.num_waiting = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing of any request is left in here."""
        return not (self._tenants or self._heap or self._idle or self._by_wait or self._num_open_requests)

    @property
    def num_tenants(self) -> int:
        """Tenants that are remembered."""
        return len(self._tenants)

    def open(self, state: RequestState) -> None:
        """Makes the request known; it starts at the present virtual time."""
        key = (state.request.tenant, state.request.priority)
        tenant = self._tenants.get(key)
        if tenant is None:
            tenant = self._tenants[key] = _Tenant(key, self._floor)
        state.virtual_units = tenant.floor
        state.tenant = tenant
        tenant.requests[state.order] = _RequestQueue(state)
        self._num_open_requests += 1

    def close(self, state: RequestState) -> None:
        """Forgets an ended request, none of whose sequences may wait any more.

        A tenant that is ahead of the present keeps its debt until the present has caught up or nobody else is there.
        """
        tenant = _tenant(state)
        tenant.requests.pop(state.order).entries.clear()
        self._num_open_requests -= 1
        if self._num_open_requests == 0:
            self._tenants.clear()
            self._heap.clear()
            self._idle.clear()
            self._by_wait.clear()
        elif not tenant.requests:
            self._put_idle(tenant)
            self._forget_paid()

    def _put_idle(self, tenant: _Tenant) -> None:
        if not tenant.in_idle:
            tenant.in_idle = True
            self._num_puts += 1
            heapq.heappush(self._idle, (tenant.virtual_units, self._num_puts, tenant))

    def _forget_paid(self) -> None:
        while self._idle and self._idle[0][0] <= self._floor:
            tenant = heapq.heappop(self._idle)[2]
            tenant.in_idle = False
            if tenant.requests:
                continue
            if tenant.virtual_units > self._floor:  # it was back and has new debt
                self._put_idle(tenant)
            else:
                del self._tenants[tenant.key]

    def push(self, entry: Entry, *, front: bool = False) -> None:
        """Adds a waiting sequence behind (or before) the others of its request."""
        tenant = _tenant(entry.state)
        queue = tenant.requests[entry.state.order]
        entry.phase = Phase.WAITING
        self.num_waiting += 1
        queue.drop_gone()
        if front:
            queue.entries.appendleft(entry)
            self._by_wait.appendleft(entry)
        else:
            queue.entries.append(entry)
            self._by_wait.append(entry)
        tenant.put(queue)
        if not tenant.in_heap:
            tenant.in_heap = True
            tenant.virtual_units = max(tenant.virtual_units, self._floor)
            self._num_puts += 1
            heapq.heappush(self._heap, (tenant.virtual_units, self._num_puts, tenant))

    def remove(self, entry: Entry, phase: Phase) -> None:
        """Takes a waiting sequence out: it starts to run, or is gone."""
        assert entry.phase is Phase.WAITING
        entry.phase = phase
        self.num_waiting -= 1

    def overdue(self, now_s: float) -> Entry | None:
        """The sequence that has waited longest, if that is longer than the patience; stays in the queue."""
        while self._by_wait and self._by_wait[0].phase is not Phase.WAITING:
            self._by_wait.popleft()
        if self._by_wait and now_s - self._by_wait[0].waiting_since_s > self._patience_s:
            return self._by_wait[0]
        return None

    def head(self) -> Entry | None:
        """The next sequence in fair order; stays in the queue."""
        while self._heap:
            virtual_units, order, tenant = self._heap[0]
            queue = tenant.least()
            if queue is None:
                heapq.heappop(self._heap)
                tenant.in_heap = False
            elif virtual_units != tenant.virtual_units:
                heapq.heapreplace(self._heap, (tenant.virtual_units, order, tenant))
            else:
                return queue.entries[0]
        return None

    def in_order(self) -> Iterator[Entry]:
        """The first waiting sequences, roughly in fair order; for batches that the head does not fit.

        Sequences may be removed and charged while this runs, but none pushed.
        """
        return islice(self._all_in_order(), _MAX_LOOKED_AT)

    def _all_in_order(self) -> Iterator[Entry]:
        for _virtual_units, _order, tenant in _ascending(self._heap):
            yield from islice(self._of_tenant(tenant), _MAX_LOOKED_AT_PER_TENANT)

    def _of_tenant(self, tenant: _Tenant) -> Iterator[Entry]:
        for _virtual_units, _order, queue in _ascending(tenant.heap):
            for entry in queue.entries:
                if entry.phase is Phase.WAITING:
                    yield entry

    def charge(self, state: RequestState, units: int) -> None:
        """Counts work that was granted to a request; negative units take a grant back."""
        tenant = _tenant(state)
        tenant.virtual_units = max(tenant.virtual_units, self._floor) + units / state.share
        state.virtual_units = max(state.virtual_units, tenant.floor) + units

    def advance(self, served: Iterable[RequestState], unmet: Iterable[RequestState]) -> None:
        """Moves the present on after a step was chosen and charged.

        Args:
            served: Requests that were granted something.
            unmet: Running requests that wanted more than they were granted.
        """
        wanting: dict[_Tenant, float] = {}  # with the least virtual time of its wanting requests
        for state in unmet:
            tenant = _tenant(state)
            wanting[tenant] = min(wanting.get(tenant, state.virtual_units), state.virtual_units)
        most: dict[_Tenant, float] = {}
        for state in served:
            tenant = _tenant(state)
            if state.virtual_units > most.get(tenant, -1.0):
                most[tenant] = state.virtual_units
        for tenant, most_units in most.items():
            least = tenant.least()
            if least is not None:
                wanting[tenant] = min(wanting.get(tenant, least.state.virtual_units), least.state.virtual_units)
            tenant.floor = max(tenant.floor, wanting.get(tenant, most_units))
        head = self.head()
        tags = [tenant.virtual_units for tenant in wanting]
        if head is not None:
            tags.append(_tenant(head.state).virtual_units)
        self._floor = max(
            self._floor, min(tags) if tags else max((tenant.virtual_units for tenant in most), default=0.0)
        )
        self._forget_paid()

    def tag(self, state: RequestState) -> tuple[float, float, int]:
        """Sorts running and waiting requests in the same fair order."""
        return (_tenant(state).virtual_units, state.virtual_units, state.order)


def _tenant(state: RequestState) -> _Tenant:
    assert isinstance(state.tenant, _Tenant)  # set by `open`
    return state.tenant


def _ascending(heap: list[RowT]) -> Iterator[RowT]:
    """The rows of a heap in order, without taking them out: k rows cost k log k, whatever the heap's size."""
    reachable = [(heap[0], 0)] if heap else []
    while reachable:
        row, index = heapq.heappop(reachable)
        yield row
        for child in (2 * index + 1, 2 * index + 2):
            if child < len(heap):
                heapq.heappush(reachable, (heap[child], child))
