"""The words that all routing shares: what a request looks like, what a replica looks like, and what was decided.

A policy is a function of (request, candidates, now) and of what it was told before; it reads no clock and no network.
`sixfold.scaling.route.router.Router` adds the reservations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestShape:
    """What routing needs to know of a request.

    Attributes:
        model: As the client named it.
        prompt_units: Work that a replica without cache does before the first byte, in tokens or what is like them.
        output_units: Work after it, as far as it can be told before.
        blocks: Chained hashes of the leading blocks of its prompt, for caches that are guessed: block n's hash
            depends on all blocks before it.
        token_ids: Of its prompt, for caches that are known; None when nobody tokenized it.
        session: Requests with the same one profit from the same replica; None for none.
        adapter: Name of the adapter that it asks for; None for none.
        region: Where it would best be served; None for no matter.
    """

    model: str
    prompt_units: int = 1
    output_units: int = 0
    blocks: tuple[int, ...] = ()
    token_ids: tuple[int, ...] | None = None
    session: str | None = None
    adapter: str | None = None
    region: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A replica that may take the request, at this moment.

    Attributes:
        replica_id: Names it for as long as it lives at its address.
        region: Where it is.
        weight: How much it takes in relation to others.
        adapters: Those that it has loaded.
        num_running: Requests that were sent there and have not ended.
        pending_units: Work that was reserved there and has not ended.
    """

    replica_id: str
    region: str = ""
    weight: float = 1.0
    adapters: frozenset[str] = frozenset()
    num_running: int = 0
    pending_units: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a policy says.

    Attributes:
        index: Into the candidates.
        reason: For logs and metrics: few different words.
        cached: Share of the prompt that the replica is believed to hold, from 0 to 1.
    """

    index: int
    reason: str
    cached: float = 0.0


class Policy(Protocol):
    """Ranks replicas. One owner calls it, from one thread."""

    def choose(self, request: RequestShape, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """Picks one of at least one candidate; changes nothing that another call would see, but for random draws.

        Args:
            request: What is asked.
            candidates: Who may take it, each with its present load.
            now_s: Monotonic seconds.
        """
        ...

    def routed(self, request: RequestShape, replica_id: str, now_s: float) -> None:
        """Learns that the request was sent to a replica, which will hold its prompt from now on."""
        ...

    def computed(self, request: RequestShape, replica_id: str) -> None:
        """Learns that the replica has computed the prompt, or that it never will; once for each `routed`."""
        ...

    def forget(self, replica_id: str) -> None:
        """Learns that a replica is gone or begins anew: what it held is lost."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A reservation: a replica that was chosen and whose load counts until `Router.complete` or `Router.fail`.

    Attributes:
        number: Its own, never given twice by one router.
        replica_id: Who takes the request.
        reason: Of the choice.
        cached: As in `Choice`.
        prefill_units: Reserved until the first byte.
        decode_units: Reserved until the end.
    """

    number: int
    replica_id: str
    reason: str
    cached: float
    prefill_units: float
    decode_units: float
