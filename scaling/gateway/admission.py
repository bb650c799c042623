"""Who may go on to a replica, and who waits for how long: bounds, fair order between keys, and an honest ``Retry-After``."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable

from sixfold.core.errors import DeadlineExceeded, QueueFull, RequestError

_RATE_WINDOW_S = 30.0
_MAX_RETRY_AFTER_S = 60.0
_MAX_REMNANTS = 256
"""Rows of requests that gave up, and keys without any, beyond which both are cleared away."""


class _Ticket:
    __slots__ = ("done", "tag", "tenant")

    def __init__(self, tenant: _Tenant, tag: float, done: asyncio.Future[None]) -> None:
        self.tenant = tenant
        self.tag = tag
        self.done = done


class _Tenant:
    __slots__ = ("finish", "tickets", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.finish = 0.0
        self.tickets: list[_Ticket] = []


class DrainRate:
    """How many requests ended a second, lately."""

    def __init__(self) -> None:
        self._ended_at_s: deque[float] = deque(maxlen=4096)

    def ended(self, now_s: float) -> None:
        """A request has ended."""
        self._ended_at_s.append(now_s)

    def retry_after_s(self, num_ahead: int, now_s: float) -> float:
        """When so many requests will have ended, from 1 s to a minute; a minute where none ends."""
        recent = [each for each in self._ended_at_s if now_s - each <= _RATE_WINDOW_S]
        if not recent:
            return _MAX_RETRY_AFTER_S if num_ahead else 1.0
        rate = len(recent) / max(1.0, now_s - recent[0])
        return min(_MAX_RETRY_AFTER_S, max(1.0, num_ahead / rate))


class Admission:
    """The requests of one model: those at replicas, and those that wait for a place. Used in one event loop.

    Waiting requests go in start-time fair order: each key's requests are tagged with a virtual time that grows by their cost
    over the key's weight, and the least tag goes first. So no key starves, and a heavy one delays itself.

    Source: Goyal, Vin and Cheng 1996, "Start-time Fair Queuing".

    Args:
        capacity: How many may be at replicas now; 0 when there is no replica.
        max_waiting: How many may wait.
        hold_s: How long they wait when there is no replica, those too that wait when the last one goes.
        no_replica: What they are told then.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        capacity: Callable[[], int],
        max_waiting: int,
        hold_s: float,
        no_replica: Callable[[], RequestError],
        clock: Callable[[], float],
    ) -> None:
        self._capacity = capacity
        self._max_waiting = max_waiting
        self._hold_s = hold_s
        self._no_replica = no_replica
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}
        self._heap: list[tuple[float, int, _Ticket]] = []
        self._virtual = 0.0
        self._num_pushed = 0
        self._rate = DrainRate()
        self._holds: dict[_Ticket, asyncio.TimerHandle] = {}
        self.num_running = 0
        self.num_waiting = 0

    async def enter(self, tenant: str, *, weight: float, cost: float, deadline_s: float | None) -> None:
        """Returns when the request may go on; each must `leave` once.

        Args:
            tenant: Whose key it is.
            weight: The key's share.
            cost: What the request weighs among those of its key.
            deadline_s: Monotonic seconds until which it may wait.

        Raises:
            QueueFull: Too many wait; or later, another key needs this place more.
            RequestError: What ``no_replica`` says: there is none, and none came in time.
            DeadlineExceeded: It waited until its deadline.
        """
        capacity = self._capacity()
        if self.num_running < capacity and not self.num_waiting:
            self.num_running += 1
            return
        if capacity == 0 and not self._hold_s:
            raise self._no_replica()
        ticket = self._push(tenant, weight, cost)
        if capacity == 0:
            self._hold(ticket)
        await self._wait(ticket, deadline_s)

    def leave(self) -> None:
        """A request has ended."""
        self.num_running -= 1
        self._rate.ended(self._clock())
        self.pump()

    def pump(self) -> None:
        """Lets waiting requests in for whom there is room; to be called when replicas come or go."""
        if self._capacity() == 0:
            for ticket in [each for tenant in self._tenants.values() for each in tenant.tickets]:
                self._hold(ticket)
            return
        for timer in self._holds.values():
            timer.cancel()
        self._holds.clear()
        while self.num_waiting and self.num_running < self._capacity():
            ticket = self._pop()
            self._virtual = max(self._virtual, ticket.tag)
            self.num_running += 1
            ticket.done.set_result(None)

    def _push(self, name: str, weight: float, cost: float) -> _Ticket:
        tenant = self._tenants.setdefault(name, _Tenant(weight))
        tenant.weight = weight
        if self.num_waiting >= self._max_waiting:
            self._make_room(tenant)
        tag = max(self._virtual, tenant.finish)
        tenant.finish = tag + cost / weight
        ticket = _Ticket(tenant, tag, asyncio.get_running_loop().create_future())
        tenant.tickets.append(ticket)
        self._num_pushed += 1
        heapq.heappush(self._heap, (tag, self._num_pushed, ticket))
        self.num_waiting += 1
        return ticket

    def _make_room(self, tenant: _Tenant) -> None:
        """Refuses the youngest request of the key that has most waiting for its weight, or the one that came now."""

        def share(each: _Tenant) -> float:
            return len(each.tickets) / each.weight

        greediest = max(self._tenants.values(), key=share, default=tenant)
        if not greediest.tickets or share(greediest) <= (len(tenant.tickets) + 1) / tenant.weight:
            self._forget_idle()
            raise self._full()
        ticket = greediest.tickets[-1]
        self._drop(ticket)
        ticket.done.set_exception(self._full())

    def _hold(self, ticket: _Ticket) -> None:
        """There is no replica: refuses the request, unless one comes before its hold ends."""
        if not self._hold_s:
            self._refuse(ticket)
        elif ticket not in self._holds:
            self._holds[ticket] = asyncio.get_running_loop().call_later(self._hold_s, self._refuse, ticket)

    def _refuse(self, ticket: _Ticket) -> None:
        self._drop(ticket)
        ticket.done.set_exception(self._no_replica())

    async def _wait(self, ticket: _Ticket, deadline_s: float | None) -> None:
        try:
            async with asyncio.timeout(None if deadline_s is None else max(0.0, deadline_s - self._clock())):
                await asyncio.shield(ticket.done)
        except TimeoutError:
            if ticket.done.done():
                return ticket.done.result()  # let in, or refused, in the same moment
            self._give_up(ticket)
            raise DeadlineExceeded("The request's deadline passed while it waited for a replica.") from None
        except asyncio.CancelledError:
            if not ticket.done.done():
                self._give_up(ticket)
            elif not ticket.done.cancelled() and ticket.done.exception() is None:
                self.leave()
            raise

    def _pop(self) -> _Ticket:
        while True:
            _tag, _order, ticket = heapq.heappop(self._heap)
            if not ticket.done.done():
                self._drop(ticket)
                return ticket

    def _give_up(self, ticket: _Ticket) -> None:
        self._drop(ticket)
        ticket.done.cancel()

    def _drop(self, ticket: _Ticket) -> None:
        """Takes a ticket out of the counts; its row in the heap goes when it is met, once its future is done."""
        ticket.tenant.tickets.remove(ticket)
        timer = self._holds.pop(ticket, None)
        if timer is not None:
            timer.cancel()
        self.num_waiting -= 1
        self._forget_idle()

    def _forget_idle(self) -> None:
        # With nobody waiting there is nobody to be fair to: debts would only grow old.
        if not self.num_waiting:
            self._tenants.clear()
            self._heap.clear()
        elif len(self._tenants) + len(self._heap) > 4 * self.num_waiting + _MAX_REMNANTS:
            self._tenants = {name: each for name, each in self._tenants.items() if each.tickets}
            self._heap = [row for row in self._heap if not row[2].done.done()]
            heapq.heapify(self._heap)

    def _full(self) -> RequestError:
        return QueueFull(
            "The servers have more requests than they can take. Try again later.",
            retry_after_s=self._rate.retry_after_s(self.num_waiting + 1, self._clock()),
        )
