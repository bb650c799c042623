"""Where objects live that a replica keeps for later requests, and whose they are: a video job, a stored response."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import msgspec

from sixfold.core.errors import NotFound
from sixfold.scaling.gateway.attempts import Attempt
from sixfold.scaling.gateway.inbound import Inbound

_KINDS = frozenset(("videos", "responses", "batches", "files"))
_MAX_OBJECTS = 100_000
_ID = re.compile(rb'"id"\s*:\s*"([^"\\]{1,128})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    replica_id: str
    tenant: str


class Owners:
    """The replica and the holder of each object, learnt from the answers that made them; the oldest are forgotten first.

    Args:
        guards: Whether an object is for its holder alone. So it must be where the gateway checks the keys: to the replicas,
            which would tell the holders apart, all requests come under the gateway's own key.
    """

    def __init__(self, *, guards: bool) -> None:
        self._guards = guards
        self._objects: OrderedDict[str, _Kept] = OrderedDict()

    def learn(self, inbound: Inbound, attempt: Attempt, *, tenant: str) -> None:
        """Remembers what an answer has made."""
        answer = attempt.answer
        if inbound.method != "POST" or answer.status >= 300 or _below_kind(_segments(inbound.path)) is None:
            return
        found = _ID.search(
            answer.first
        )  # the object's own id is the first in all of them, also in a stream's first event
        if found is not None:
            self._objects[found[1].decode()] = _Kept(replica_id=attempt.decision.replica_id, tenant=tenant)
            if len(self._objects) > _MAX_OBJECTS:
                self._objects.popitem(last=False)

    def owner_of(self, inbound: Inbound, *, tenant: str) -> str | None:
        """The replica that must answer, if the request is about an object that is remembered.

        Raises:
            NotFound: Objects are guarded, and this one is another's or unknown, or the request would list them.
        """
        named = [each for each in (named_object(inbound.path), _continued(inbound)) if each is not None]
        if self._guards:
            self._check(inbound, named, tenant)
        kept = self._objects.get(named[0]) if named else None
        return None if kept is None else kept.replica_id

    def _check(self, inbound: Inbound, named: Sequence[str], tenant: str) -> None:
        segments = _segments(inbound.path)
        if ".." in segments:
            raise NotFound("A path with '..' leads nowhere here.")
        if not named and _below_kind(segments) is not None and inbound.method != "POST":
            raise NotFound(
                "With API keys the gateway lists no objects: a server does not know whose they are. Ask for each by its id."
            )
        for object_id in named:
            kept = self._objects.get(object_id)
            if kept is None or kept.tenant != tenant:
                raise NotFound(
                    f"The gateway knows no object {object_id[:128]!r} of this API key. It knows those that were made through "
                    "it since it started."
                )


def named_object(path: str) -> str | None:
    """The id of the object that a path is about; None if it is about none."""
    below = _below_kind(_segments(path))
    return below[0] if below else None


def _segments(path: str) -> Sequence[str]:
    """The parts of a path as the most lenient server reads them."""
    return [each for each in unquote(path).split("/") if each not in ("", ".")]


def _below_kind(segments: Sequence[str]) -> Sequence[str] | None:
    """What follows ``/v1/videos`` and its like; None for other paths."""
    is_kept = len(segments) >= 2 and segments[0] == "v1" and segments[1] in _KINDS
    return segments[2:] if is_kept else None


def _continued(inbound: Inbound) -> str | None:
    if inbound.prompt is None or not bytes(inbound.prompt.previous_response_id):
        return None
    try:
        return msgspec.json.decode(inbound.prompt.previous_response_id, type=str)
    except ValueError:  # null, or what the replica refuses
        return None
