"""Consistent hashing with bounded loads: a key keeps its replica, few keys move when replicas come and go, none overflows."""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Iterator, Sequence

from sixfold.scaling.route.load import relative_load
from sixfold.scaling.route.policy import Candidate, Choice, RequestShape

_POINTS_PER_REPLICA = 100
"""With 100 points the shares of the keys differ by about a tenth; each candidate set costs so many hashes once."""
_MAX_RINGS = 64


def stable_hash(text: str) -> int:
    """64 bits that are the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class HashRing:
    """The points of some replicas on a circle."""

    def __init__(self, replica_ids: Sequence[str]) -> None:
        points = [
            (stable_hash(f"{replica_id}#{point}"), index)
            for index, replica_id in enumerate(replica_ids)
            for point in range(_POINTS_PER_REPLICA)
        ]
        points.sort()
        self._places = [place for place, _index in points]
        self._owners = [index for _place, index in points]

    def clockwise(self, key: str) -> Iterator[int]:
        """Indexes of the replicas in the order in which the key would have them, each once."""
        start = bisect.bisect(self._places, stable_hash(key))
        seen: set[int] = set()
        for step in range(len(self._owners)):
            owner = self._owners[(start + step) % len(self._owners)]
            if owner not in seen:
                seen.add(owner)
                yield owner


class BoundedHash:
    """Sends a request by its session, else by the beginning of its prompt, to the first replica with room on the ring.

    Room is below ``slack`` times the mean number of requests, this one counted.

    Source: Mirrokni, Thorup and Zadimoghaddam 2018, "Consistent hashing with bounded loads".

    Args:
        slack: Above 1; the nearer to 1, the more even and the less faithful.
    """

    def __init__(self, slack: float = 1.25) -> None:
        self._slack = slack
        self._rings: dict[tuple[str, ...], HashRing] = {}

    def choose(self, request: RequestShape, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """See `Policy.choose`."""
        key = _key(request)
        if key is None:
            lightest = min(range(len(candidates)), key=lambda index: relative_load(candidates[index]))
            return Choice(index=lightest, reason="least_loaded")
        ring = self._ring(tuple(candidate.replica_id for candidate in candidates))
        for place, index in enumerate(ring.clockwise(key)):
            if candidates[index].num_running < self._room(candidates[index], candidates):
                return Choice(index=index, reason="hash" if place == 0 else "hash_overflow")
        raise AssertionError("the bounds add up to more than all requests, so one replica has room")

    def routed(self, request: RequestShape, replica_id: str, now_s: float) -> None:
        """See `Policy.routed`."""

    def computed(self, request: RequestShape, replica_id: str) -> None:
        """See `Policy.computed`."""

    def forget(self, replica_id: str) -> None:
        """See `Policy.forget`: where keys belong does not depend on what was."""

    def _room(self, candidate: Candidate, candidates: Sequence[Candidate]) -> int:
        num_requests = 1 + sum(each.num_running for each in candidates)
        share = candidate.weight / sum(each.weight for each in candidates)
        return math.ceil(self._slack * num_requests * share)

    def _ring(self, replica_ids: tuple[str, ...]) -> HashRing:
        ring = self._rings.get(replica_ids)
        if ring is None:
            if len(self._rings) >= _MAX_RINGS:
                self._rings.clear()
            ring = self._rings[replica_ids] = HashRing(replica_ids)
        return ring


def _key(request: RequestShape) -> str | None:
    if request.session is not None:
        return f"session {request.session}"
    # The first block alone: a conversation that grows keeps its place. A prompt without a whole block has no cache to miss.
    return f"prompt {request.blocks[0]}" if request.blocks else None
