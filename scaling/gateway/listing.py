"""Lists of what all servers keep: one server after the other, in pages, as a client with a cursor walks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

import msgspec

from sixfold.core.errors import InvalidRequest, NotReady, WorkerDied
from sixfold.core.object_ids import store_of
from sixfold.scaling.gateway.attempts import Attempts
from sixfold.scaling.gateway.fleet import Fleet, Replica
from sixfold.scaling.gateway.inbound import Inbound
from sixfold.scaling.gateway.upstream import AnswerTorn
from sixfold.scaling.gateway.work import Attempt, Work

_MISSING_HEADER = "x-servers-missing"
"""How many servers were not asked, as they are not up: the list lacks what they keep."""

_Page = dict[str, msgspec.Raw]
_EMPTY: _Page = {
    "object": msgspec.Raw(b'"list"'),
    "data": msgspec.Raw(b"[]"),
    "first_id": msgspec.Raw(b"null"),
    "last_id": msgspec.Raw(b"null"),
    "has_more": msgspec.Raw(b"false"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A page.

    Attributes:
        body: JSON.
        headers: Beside its type.
    """

    body: bytes
    headers: Sequence[tuple[str, str]]


class ObjectLists:
    """Makes pages. Used in one event loop.

    Args:
        fleet: The servers.
        attempts: Asks them.
        guards: Whether only servers that tell the gateway's clients apart may be asked.
    """

    def __init__(self, fleet: Fleet, attempts: Attempts, *, guards: bool) -> None:
        self._fleet = fleet
        self._attempts = attempts
        self._guards = guards

    @property
    def has_keepers(self) -> bool:
        """Whether there are servers whose lists may be shown."""
        return any(self._keeps(replica) for replica in self._fleet)

    async def page(self, inbound: Inbound, work: Work) -> Listed | Attempt:
        """The next page, or the answer of the server that refuses it; who gets that closes it.

        The servers come in the order of their stores; a cursor says in which of them to go on.

        Raises:
            InvalidRequest: The cursor is none that a list of this gateway gave.
            NotReady: No server is up, or the cursor's is not.
            RequestError: As of `Attempts.first_answer`.
        """
        query = parse_qsl(inbound.target.partition("?")[2], keep_blank_values=True)
        after = next((value for name, value in query if name == "after"), None)
        usable = self._fleet.usable(None)
        keepers = sorted((each for each in self._fleet if self._keeps(each)), key=lambda each: each.store_id)
        there = [each for each in keepers if each in usable]
        num_missing = sum(not each.was_seen for each in self._fleet) + len(keepers) - len(there)
        if not there:
            raise NotReady(
                "No server that keeps such objects is up right now. Try again in a moment.", retry_after_s=2.0
            )
        if after is not None:
            there = _from_store(there, keepers, after)
        page = _EMPTY
        for place, replica in enumerate(there):
            is_cursors = after is not None and store_of(after) == replica.store_id
            given = [(name, value) for name, value in query if is_cursors or name != "after"]
            found = await self._ask(replica, inbound, work, given)
            is_last = place == len(there) - 1
            if isinstance(found, Attempt):
                if found.answer.status == 404 and len(there) > 1:  # it lacks the plugin, and so has none of these
                    found.close()
                    continue
                return found
            page = found
            if bytes(page.get("data", msgspec.Raw(b"[]"))) != b"[]":
                if not is_last:
                    page["has_more"] = msgspec.Raw(b"true")
                break
        headers = [(_MISSING_HEADER, str(num_missing))] if num_missing else []
        return Listed(body=msgspec.json.encode(page), headers=headers)

    def _keeps(self, replica: Replica) -> bool:
        return bool(replica.store_id) and (replica.tells_tenants or not self._guards)

    async def _ask(
        self, replica: Replica, inbound: Inbound, work: Work, query: Sequence[tuple[str, str]]
    ) -> _Page | Attempt:
        target = inbound.path + (f"?{urlencode(query)}" if query else "")
        own = replace(
            work,
            only=frozenset((replica.record.replica_id,)),
            outgoing=replace(work.outgoing, target=target),
        )
        attempt = await self._attempts.first_answer(own)
        try:
            if attempt.answer.status != 200:
                return attempt
            page = msgspec.json.decode(await attempt.answer.read(), type=_Page)
        except (AnswerTorn, ValueError, RecursionError) as failure:
            attempt.close(failed=True)
            raise WorkerDied(
                "The server whose turn it was gave no whole list. Try again.", retry_after_s=1.0
            ) from failure
        except BaseException:
            attempt.close()
            raise
        attempt.close()
        return page


def _from_store(there: Sequence[Replica], keepers: Sequence[Replica], after: str) -> list[Replica]:
    """Those from the cursor's own on."""
    store_id = store_of(after)
    if store_id is None:
        raise InvalidRequest(
            f"after: {after[:80]!r} is no id of a list of this gateway. Take the 'last_id' of the page before.",
            param="after",
        )
    if any(each.store_id == store_id for each in keepers) and not any(each.store_id == store_id for each in there):
        raise NotReady(
            "The server that the list had come to is not up right now. Try again in a moment.",
            code="holder_not_up",
            retry_after_s=2.0,
        )
    return [each for each in there if each.store_id >= store_id]
