"""Who keeps what a request is about, and whether its client may have it: a video job, a stored response, a file, a batch.

The id of an object names the store that holds it, and each server says which store is its own; so every gateway finds the way,
also after a restart, and remembers nothing. Whose an object is the server says, where the gateway tells it for whom it asks.
Only of servers that do neither is it remembered here what they have made, and for whom.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sixfold.core.errors import InvalidRequest, NotFound, NotReady, RequestError
from sixfold.core.object_ids import store_of
from sixfold.scaling.gateway.fleet import Fleet
from sixfold.scaling.gateway.inbound import Inbound
from sixfold.scaling.gateway.object_names import below_kind, lists_objects, named_objects, segments
from sixfold.scaling.gateway.work import Attempt

_MAX_OBJECTS = 100_000
_MAX_MISSED = 1000
_ID = re.compile(rb'"id"\s*:\s*"([^"\\]{1,128})"')


class HolderGone(RequestError):
    """The server that kept the object is not among the known ones any more."""

    status = 410
    type = "invalid_request_error"
    default_code = "holder_gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    replica_id: str
    tenant: str


class Owners:
    """Finds the servers that a request must go to. Used in one event loop.

    Args:
        fleet: The servers, and the store of each.
        guards: Whether an object is for its holder alone. So it must be where the gateway checks the keys.
        grace_s: How long a store that no server has may yet turn up, as one that has just begun does with its next probe.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        guards: bool,
        grace_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._guards = guards
        self._grace_s = grace_s
        self._clock = clock
        self._objects: OrderedDict[str, _Kept] = OrderedDict()
        self._missed: OrderedDict[str, float] = OrderedDict()

    def learn(self, inbound: Inbound, attempt: Attempt, *, tenant: str) -> None:
        """Remembers what an answer has made, where its id and its server don't say all of it."""
        answer = attempt.answer
        if inbound.method != "POST" or answer.status >= 300 or below_kind(segments(inbound.path)) is None:
            return
        # The object's own id is the first in all of them, also in a stream's first event.
        found = _ID.search(answer.first)
        if found is None:
            return
        object_id = found[1].decode(errors="replace")
        store_id, replica = store_of(object_id), self._fleet.get(attempt.decision.replica_id)
        if replica is not None and store_id is not None:
            if not self._fleet.holding(store_id):  # it began anew since its last probe
                replica.store_id = store_id
            if replica.tells_tenants or not self._guards:
                return
        self._objects[object_id] = _Kept(replica_id=attempt.decision.replica_id, tenant=tenant)
        if len(self._objects) > _MAX_OBJECTS:
            self._objects.popitem(last=False)

    def owners_of(self, inbound: Inbound, *, tenant: str) -> frozenset[str] | None:
        """Ids of the servers of which one must answer; None where any may.

        Raises:
            NotFound: Objects are guarded, and this one is another's or unknown, or the request would list them.
            HolderGone: No server keeps the store that the id names.
            NotReady: One may yet turn up that does.
            InvalidRequest: No one server keeps all that is named, or the one that does has not the model.
        """
        named = named_objects(inbound)
        if self._guards:
            self._check_path(inbound, named)
        common: frozenset[str] | None = None
        for param, object_id in named.items():
            place = self._place(object_id, tenant)
            if place is not None:
                common = place if common is None else common & place
                if not common:
                    raise InvalidRequest(
                        f"{' and '.join(map(repr, named.values()))} are kept by different servers. Name what one server keeps.",
                        param=param,
                    )
        if common is not None and inbound.model is not None:
            self._check_model(common, inbound.model)
        return common

    def _place(self, object_id: str, tenant: str) -> frozenset[str] | None:
        store_id, kept = store_of(object_id), self._objects.get(object_id)
        if store_id is not None:
            holders = self._fleet.holding(store_id)
            if not holders:
                raise self._missing(object_id, store_id)
            self._missed.pop(store_id, None)
            judging = [each.record.replica_id for each in holders if each.tells_tenants or not self._guards]
            if judging:
                return frozenset(judging)
        if self._guards and (kept is None or kept.tenant != tenant):
            raise NotFound(
                f"The gateway knows no object {object_id[:128]!r} of this API key. It knows those that were made through it "
                "since it started, and those of servers that let it say for whom it asks ('acts_for_others' of its key)."
            )
        return None if kept is None else frozenset((kept.replica_id,))

    def _check_path(self, inbound: Inbound, named: Collection[str]) -> None:
        path = segments(inbound.path)
        if ".." in path:
            raise NotFound("A path with '..' leads nowhere here.")
        if not named and below_kind(path) is not None and inbound.method != "POST":
            if lists_objects(inbound) and any(replica.tells_tenants for replica in self._fleet):
                return
            raise NotFound(
                "With API keys the gateway lists no objects of servers that do not know whose they are. Ask for each by its id; "
                "the operator allows lists by 'acts_for_others' of the servers' key for the gateway."
            )

    def _check_model(self, holders: Collection[str], model: str) -> None:
        found = [replica for each in holders if (replica := self._fleet.get(each)) is not None]
        if found and not any(replica.serves(model) for replica in found):
            others = ", ".join(sorted({name for replica in found for name in replica.names})[:8])
            raise InvalidRequest(
                f"What the request goes on from is kept by a server that has not the model {model[:200]!r}. Go on with one of "
                f"its own ({others}), or send all of it as input.",
                param="model",
            )

    def _missing(self, object_id: str, store_id: str) -> RequestError:
        now_s = self._clock()
        since_s = self._missed.setdefault(store_id, now_s)
        self._missed.move_to_end(store_id)
        if len(self._missed) > _MAX_MISSED:
            self._missed.popitem(last=False)
        # No probe is hurried: ids of stores that never were would keep the gateway probing.
        if self._fleet.may_know_more or now_s - since_s < self._grace_s:
            return NotReady(
                f"No server keeps {object_id[:128]!r} right now. Try again in a moment.",
                code="holder_not_up",
                retry_after_s=1.0,
            )
        return HolderGone(
            f"The server that kept {object_id[:128]!r} is gone, and the object with it. Make it anew. Should that server come "
            "back with its data_dir, the object does, too."
        )
