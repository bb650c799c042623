"""When open requests must be done at the latest, so that the loop knows whom to end next."""

from __future__ import annotations

import heapq

from sixfold.core.batching.entry import RequestState

_SPARE_ROWS = 64  # of ended requests, never worth a rebuild


class Deadlines:
    """Of open requests, soonest first. Owner: the device thread.

    An ended request is not searched for, but neither is it kept until a deadline far away: rebuilding when half of the rows
    are of such requests costs O(1) a request.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[float, int, RequestState]] = []
        self._num_stale = 0  # rows of ended requests

    def __len__(self) -> int:
        """Rows that are kept: of open requests and of some that have ended."""
        return len(self._rows)

    @property
    def next_s(self) -> float | None:
        """The soonest, perhaps of a request that has ended."""
        return self._rows[0][0] if self._rows else None

    def add(self, state: RequestState) -> None:
        """Remembers the request's deadline, if it has one."""
        if state.request.deadline_s is not None:
            heapq.heappush(self._rows, (state.request.deadline_s, state.order, state))

    def pop_due(self, now_s: float) -> RequestState | None:
        """Forgets the deadline of an open request that has passed; the caller ends the request."""
        while self._rows and (self._rows[0][0] <= now_s or self._rows[0][2].ended):
            state = heapq.heappop(self._rows)[2]
            self._num_stale -= 1  # one that is open counts as ended in a moment: its row is out already
            if not state.ended:
                return state
        return None

    def drop(self, state: RequestState) -> None:
        """The request has ended; call it once."""
        if state.request.deadline_s is None:
            return
        self._num_stale += 1
        if self._num_stale == len(self._rows) or self._num_stale * 2 > len(self._rows) + _SPARE_ROWS:
            self._rows = [row for row in self._rows if not row[2].ended]
            heapq.heapify(self._rows)
            self._num_stale = 0
