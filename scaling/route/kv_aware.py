"""Sends a request where its tokens are cached, as the replicas themselves tell; where they tell nothing, as guessed."""

from __future__ import annotations

from collections.abc import Sequence

from sixfold.scaling.route.cost import cheapest
from sixfold.scaling.route.kv_index import KvIndex
from sixfold.scaling.route.policy import Candidate, Choice, RequestShape
from sixfold.scaling.route.prefix import PrefixAffinity


class KvAware:
    """Precise for requests with token ids among replicas of which any announces its cache, else `PrefixAffinity`.

    Args:
        index: What the replicas announced; fed by others.
        guess: For the rest.
    """

    def __init__(self, index: KvIndex, guess: PrefixAffinity) -> None:
        self._index = index
        self._guess = guess

    def choose(self, request: RequestShape, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """See `Policy.choose`."""
        held = [self._index.num_blocks(candidate.replica_id) for candidate in candidates]
        if not request.token_ids or not any(held):
            return self._guess.choose(request, candidates, now_s)
        replica_ids = [candidate.replica_id for candidate in candidates]
        tokens = self._index.cached_tokens(request.token_ids, replica_ids, request.adapter)
        num_tokens = len(request.token_ids)
        return cheapest(request, candidates, [tokens[each] / num_tokens for each in replica_ids], held)

    def routed(self, request: RequestShape, replica_id: str, now_s: float) -> None:
        """See `Policy.routed`. The replica will tell itself; the guess is for when it falls silent."""
        self._guess.routed(request, replica_id, now_s)

    def forget(self, replica_id: str) -> None:
        """See `Policy.forget`."""
        self._index.forget(replica_id)
        self._guess.forget(replica_id)
