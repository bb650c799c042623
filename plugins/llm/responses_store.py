"""Keeps responses, so that they can be read again and continued."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sixfold.core.errors import InvalidRequest, NotFound
from sixfold.core.jobs import Job, JobStore
from sixfold.plugins.llm.responses_schema import InputItem

_LOG = logging.getLogger(__name__)

KIND = "resp"
_KEEP_S = 30 * 24 * 3600.0
"""As long as OpenAI keeps them."""
_SWEEP_EVERY = 256
_MAX_TURNS = 1000


class ResponseStore:
    """Responses by id and owner, in the data folder's SQLite file. Used in the serving loop.

    Args:
        jobs: Opened with the first call, closed here.
        clock: Unix seconds.
    """

    def __init__(self, jobs: JobStore, *, clock: Callable[[], float]) -> None:
        self._jobs = jobs
        self._clock = clock
        self._num_stored = 0

    def new_id(self) -> str:
        """The id of a response that begins now."""
        return self._jobs.new_id(KIND)

    async def close(self) -> None:
        """The last call."""
        await self._jobs.close()

    async def put(self, response: dict[str, Any], items: Sequence[InputItem], *, owner: str) -> None:
        """Stores a finished response with what its request said; it is on the disk then."""
        payload = {
            "response": msgspec.to_builtins(response),
            "input": [item.model_dump(exclude_none=True) for item in items],
        }
        if self._num_stored % _SWEEP_EVERY == 0:
            num_deleted = await self._jobs.delete_unchanged_since(KIND, self._clock() - _KEEP_S)
            _LOG.debug("%d stored responses have expired", num_deleted)
        self._num_stored += 1
        await self._jobs.create(KIND, owner, payload, str(response["status"]), job_id=response["id"])

    async def get(self, response_id: str, *, owner: str) -> dict[str, Any]:
        """A response as it was answered.

        Raises:
            NotFound: There is none of this id and owner, or it has expired.
        """
        job = await self._find(response_id, owner)
        if job is None:
            raise _not_found(response_id)
        response: dict[str, Any] = job.payload["response"]
        return response

    async def delete(self, response_id: str, *, owner: str) -> None:
        """Forgets a response.

        Raises:
            NotFound: There is none.
        """
        if await self._find(response_id, owner) is None or not await self._jobs.delete(response_id, owner=owner):
            raise _not_found(response_id)

    async def conversation(self, response_id: str | None, *, owner: str) -> list[InputItem]:
        """All that was said up to and with a response, in order.

        Raises:
            InvalidRequest: It, or one before it, is not stored.
        """
        turns: list[list[InputItem]] = []
        while response_id is not None:
            job = await self._find(response_id, owner)
            if job is None or len(turns) == _MAX_TURNS:
                raise InvalidRequest(
                    f"There is no stored response {response_id[:80]!r} to continue. Send the conversation as 'input'.",
                    param="previous_response_id",
                    code="previous_response_not_found",
                )
            response: dict[str, Any] = job.payload["response"]
            turns.append([InputItem.model_validate(item) for item in [*job.payload["input"], *response["output"]]])
            response_id = response["previous_response_id"]
        return [item for turn in reversed(turns) for item in turn]

    async def _find(self, response_id: str, owner: str) -> Job | None:
        job = await self._jobs.get(response_id, owner=owner)
        expired = job is not None and job.updated_s < self._clock() - _KEEP_S
        return None if job is None or job.kind != KIND or expired else job


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"There is no response {response_id[:80]!r}. It was not stored, was deleted or has expired.")
