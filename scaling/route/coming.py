"""What replicas are about to hold: the prompts that were sent to them and of which they have not told yet."""

from __future__ import annotations

from collections import Counter

from sixfold.scaling.route.policy import RequestShape


class ComingPrompts:
    """The blocks of prompts that wait or are computed, by replica.

    A replica tells of its blocks when it has computed them. A request that continues such a prompt and comes before that would
    be sent elsewhere and be computed a second time.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, Counter[int]] = {}

    def __len__(self) -> int:
        """Blocks that are remembered."""
        return sum(map(len, self._blocks.values()))

    def routed(self, request: RequestShape, replica_id: str) -> None:
        """It was sent there."""
        if request.blocks:
            self._blocks.setdefault(replica_id, Counter()).update(request.blocks)

    def computed(self, request: RequestShape, replica_id: str) -> None:
        """The replica has told of it, or never will. Harmless for what is not known."""
        blocks = self._blocks.get(replica_id)
        if blocks is None:
            return
        for block in request.blocks:
            if blocks[block] > 1:
                blocks[block] -= 1
            else:
                del blocks[block]
        if not blocks:
            del self._blocks[replica_id]

    def forget(self, replica_id: str) -> None:
        """The replica is gone."""
        self._blocks.pop(replica_id, None)

    def share(self, request: RequestShape, replica_id: str) -> float:
        """How much of the prompt's beginning is on its way there, from 0 to 1."""
        blocks = self._blocks.get(replica_id)
        if blocks is None or not request.blocks:
            return 0.0
        matched = next((place for place, block in enumerate(request.blocks) if block not in blocks), None)
        return 1.0 if matched is None else matched / len(request.blocks)
