"""Sends a request where its tokens are cached, as the replicas themselves tell; where they tell nothing, as guessed."""

from __future__ import annotations

from collections.abc import Sequence

from sixfold.scaling.route.coming import ComingPrompts
from sixfold.scaling.route.cost import cheapest
from sixfold.scaling.route.kv_index import KvIndex
from sixfold.scaling.route.policy import Candidate, Choice, RequestShape
from sixfold.scaling.route.prefix import PrefixAffinity


class KvAware:
    """Precise for requests with token ids among replicas of which any announces its cache, else `PrefixAffinity`.

    Prompts that were sent to a replica and are not computed yet count as held there: it will have told of them, or be busy with
    them, when this request's turn comes.

    Args:
        index: What the replicas announced; fed by others.
        guess: For the rest.
    """

    def __init__(self, index: KvIndex, guess: PrefixAffinity) -> None:
        self._index = index
        self._guess = guess
        self._coming = ComingPrompts()

    def choose(self, request: RequestShape, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """See `Policy.choose`."""
        held = [self._index.num_blocks(candidate.replica_id) for candidate in candidates]
        if not request.token_ids or not any(held):
            return self._guess.choose(request, candidates, now_s)
        replica_ids = [candidate.replica_id for candidate in candidates]
        tokens = self._index.cached_tokens(request.token_ids, replica_ids, request.adapter)
        num_tokens = len(request.token_ids)
        cached = [max(tokens[each] / num_tokens, self._coming.share(request, each)) for each in replica_ids]
        return cheapest(request, candidates, cached, held)

    def routed(self, request: RequestShape, replica_id: str, now_s: float) -> None:
        """See `Policy.routed`. The replica will tell itself; the guess is for when it falls silent."""
        self._guess.routed(request, replica_id, now_s)
        self._coming.routed(request, replica_id)

    def computed(self, request: RequestShape, replica_id: str) -> None:
        """See `Policy.computed`. Now the replica itself tells."""
        self._guess.computed(request, replica_id)
        self._coming.computed(request, replica_id)

    def forget(self, replica_id: str) -> None:
        """See `Policy.forget`."""
        self._index.forget(replica_id)
        self._guess.forget(replica_id)
        self._coming.forget(replica_id)
