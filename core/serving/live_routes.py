"""``GET /live``: the running batches, for people who look and programs that draw; nothing is measured while nobody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from sixfold.core.errors import RateLimited
from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.serving.context import SCOPE_KEY, ServingContext
from sixfold.core.serving.keys import Principal
from sixfold.core.serving.live_feed import LiveFeed

MAX_FEEDS = 16
"""Streams of one key at the same time: each costs the serving process a message four times a second. By key, so that none can
keep the others from looking."""

_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class LiveRoutes:
    """The route. Needs a key where there are keys.

    Args:
        context: The server's parts.
        ledger: The account of memory; None where nobody keeps one.
    """

    def __init__(self, context: ServingContext, ledger: MemoryLedger | None) -> None:
        self._context = context
        self._ledger = ledger
        self._num_feeds: Counter[str] = Counter()

    async def live(self, request: Request) -> Response:
        """``GET /live``: one moment as JSON, or a stream of server-sent events for whoever accepts ``text/event-stream``.

        Raises:
            RateLimited: As many of this key watch already as may.
        """
        principal: Principal = request.scope[SCOPE_KEY].principal
        feed = LiveFeed(self._context, principal, self._ledger)
        if "text/event-stream" not in request.headers.get("accept", "") or request.method == "HEAD":
            return Response(msgspec.json.encode(feed.message()), media_type="application/json")
        if self._num_feeds[principal.name] >= MAX_FEEDS:
            raise RateLimited(
                f"{MAX_FEEDS} live views of this key are open already. Close one and try again.", retry_after_s=5.0
            )
        return StreamingResponse(
            self._counted(feed, principal.name), headers=_STREAM_HEADERS, media_type="text/event-stream"
        )

    async def _counted(self, feed: LiveFeed, holder: str) -> AsyncIterator[bytes]:
        self._num_feeds[holder] += 1
        try:
            async for frame in feed.frames():
                yield frame
        finally:
            feed.close()
            self._num_feeds[holder] -= 1
            if not self._num_feeds[holder]:
                del self._num_feeds[holder]  # names are the clients' own where there are no keys
