"""Which revision of a service gets a request: exact shares, and a session stays with one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sixfold.scaling.route.router import ReplicaFacts

_HASH_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What a rollout asks of a gateway.

    Attributes:
        old: The revision that takes what the new one does not.
        new: The one on trial.
        share: Of the requests, that the new one gets.
    """

    old: str
    new: str
    share: float


class Splitter:
    """Keeps one service's shares. Owned by one event loop.

    Invariant: of n requests without a session since the share was set, the new revision got n times the share, give or take
    one: a draw would give a canary of one percent no request for a long time, or several in a row.

    Args:
        split: The shares.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self._owed = 0.0

    def set_share(self, share: float) -> None:
        """Changes the new revision's share."""
        self.split = Split(old=self.split.old, new=self.split.new, share=share)
        self._owed = 0.0

    def narrow(
        self, replicas: Sequence[ReplicaFacts], *, session: str | None = None, is_retry: bool = False
    ) -> Sequence[ReplicaFacts]:
        """The replicas among which the policy may choose: of one revision, or all where that one has none.

        Args:
            replicas: Who may take the request.
            session: Of the request.
            is_retry: Whether it failed before: what failed at one revision is tried at the old one, which is known to work.
        """
        old = [each for each in replicas if each.revision == self.split.old]
        new = [each for each in replicas if each.revision == self.split.new]
        if (
            self.split.share == 0.0
        ):  # on trial without requests: not even as the last resort, unless nobody else is there
            return old or replicas
        if is_retry:
            return old or replicas
        return (new if self._takes(session) else old) or replicas

    def _takes(self, session: str | None) -> bool:
        if session is not None:
            digest = hashlib.blake2b(session.encode(), digest_size=_HASH_BYTES).digest()
            return int.from_bytes(digest) < self.split.share * (1 << (8 * _HASH_BYTES))
        self._owed += self.split.share
        if self._owed < 1.0 - 1e-9:
            return False
        self._owed -= 1.0
        return True
