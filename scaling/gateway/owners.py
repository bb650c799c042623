"""Where objects live that a replica keeps for later requests: a video job, a stored response."""

from __future__ import annotations

import re
from collections import OrderedDict

import msgspec

from sixfold.scaling.gateway.attempts import Attempt
from sixfold.scaling.gateway.inbound import Inbound

_KEEPERS = re.compile(r"/v1/(videos|responses|batches|files)(/.*)?")
_OBJECT = re.compile(r"/v1/(?:videos|responses|batches|files)/([^/]+)")
_MAX_OBJECTS = 100_000
_ID = re.compile(rb'"id"\s*:\s*"([^"\\]{1,128})"')


class Owners:
    """The replica of each object, learnt from the answers that made them; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._replica_of: OrderedDict[str, str] = OrderedDict()

    def learn(self, inbound: Inbound, attempt: Attempt) -> None:
        """Remembers what an answer has made."""
        answer = attempt.answer
        if inbound.method != "POST" or answer.status >= 300 or not _KEEPERS.fullmatch(inbound.path):
            return
        found = _ID.search(
            answer.first
        )  # the object's own id is the first in all of them, also in a stream's first event
        if found is not None:
            self._replica_of[found[1].decode()] = attempt.decision.replica_id
            if len(self._replica_of) > _MAX_OBJECTS:
                self._replica_of.popitem(last=False)

    def owner_of(self, inbound: Inbound) -> str | None:
        """The replica that must answer, if the request is about an object that is remembered."""
        object_id: str | None = None
        found = _OBJECT.match(inbound.path)
        if found is not None:
            object_id = found[1]
        elif inbound.prompt is not None and bytes(inbound.prompt.previous_response_id):
            try:
                object_id = msgspec.json.decode(inbound.prompt.previous_response_id, type=str)
            except msgspec.DecodeError:
                return None
        return None if object_id is None else self._replica_of.get(object_id)
