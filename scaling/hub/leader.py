"""Which of the hub's candidates plans: the one whose entry is in the store, for as long as its lease lives."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sixfold.scaling.hub.store import ABSENT, Conflict, Fence, Lease, Store

LEADER_KEY = "leader"

_log = logging.getLogger(__name__)


class Leadership:
    """One candidate's side of the election.

    `fence` is what makes this safe: a write that carries it fails in the store once another leads. The candidate's own opinion,
    by its own clock, only saves useless work.

    Args:
        store: Where candidates meet.
        candidate_id: This one's name, unique.
        ttl_s: How long the others wait for a leader that says nothing.
        clock: This process's seconds.
    """

    def __init__(self, store: Store, candidate_id: str, *, ttl_s: float, clock: Callable[[], float]) -> None:
        self._store = store
        self._candidate_id = candidate_id
        self._ttl_s = ttl_s
        self._clock = clock
        self._lease: Lease | None = None
        self._fence: Fence | None = None
        self._valid_until_s = 0.0

    @property
    def fence(self) -> Fence | None:
        """What the leader's writes depend on; None while this candidate does not lead."""
        return self._fence if self._clock() < self._valid_until_s else None

    async def step(self, *, eligible: bool) -> Fence | None:
        """Keeps the lead, or tries to get it; call it about three times within ``ttl_s``.

        Args:
            eligible: False gives the lead away: this candidate sees too little to plan.

        Raises:
            StoreUnavailable: Nothing is known; the lead holds until its time is over by this clock.
        """
        if not eligible:
            await self.resign()
        elif self._lease is None or self._fence is None:
            await self._campaign()
        else:
            asked_s = self._clock()
            if await self._store.keep_alive(self._lease):
                self._valid_until_s = asked_s + self._lease.ttl_s
            else:
                _log.warning("%s leads no more: its lease has ended", self._candidate_id)
                self._forget()
        return self.fence

    async def resign(self) -> None:
        """Lets another lead at once."""
        lease = self._lease
        self._forget()
        if lease is not None:
            await self._store.revoke(lease)

    def fenced(self) -> None:
        """The store refused the fence: another leads."""
        _log.warning("%s leads no more: the store says so", self._candidate_id)
        self._forget()

    async def _campaign(self) -> None:
        if (
            self._lease is not None
        ):  # of a campaign without an answer: its entry, if there is one, must not block this one
            await self.resign()
        if await self._store.get(LEADER_KEY) is not None:
            return
        asked_s = self._clock()
        self._lease = await self._store.grant(self._ttl_s)
        try:
            version = await self._store.put(LEADER_KEY, self._candidate_id.encode(), expected=ABSENT, lease=self._lease)
        except Conflict:
            await self.resign()
            return
        self._fence = Fence(key=LEADER_KEY, version=version)
        self._valid_until_s = asked_s + self._lease.ttl_s
        _log.info("%s leads", self._candidate_id)

    def _forget(self) -> None:
        self._lease = self._fence = None
        self._valid_until_s = 0.0
