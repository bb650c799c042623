"""Joins a cache to the socket on which its contents are announced."""

from __future__ import annotations

from collections.abc import Mapping

from sixfold.plugins.llm.kv_cache import KvCache
from sixfold.plugins.llm.kv_event_publisher import KvEventPublisher
from sixfold.plugins.llm.kv_events import KvEventLog
from sixfold.plugins.llm.options import KvEventOptions


class KvAnnouncer:
    """Announces what the cache holds, a batch a step. Owned by the device thread.

    Args:
        cache: Whose prefixes are announced.
        publisher: Sends; ended with this.
    """

    def __init__(self, cache: KvCache, publisher: KvEventPublisher) -> None:
        self._publisher = publisher
        self._log = KvEventLog(cache.block_size, publisher.publish)
        cache.prefix.listener = self._log

    @property
    def endpoints(self) -> Mapping[str, str]:
        """Where its sockets are bound, for ``/v1/models``."""
        replay = self._publisher.replay_endpoint
        events = {"kv_events_endpoint": self._publisher.endpoint}
        return events if replay is None else {**events, "kv_events_replay_endpoint": replay}

    def flush(self) -> None:
        """Sends what a step has changed."""
        self._log.flush()

    def close(self) -> None:
        """Says that all is gone."""
        self._log.cleared()
        self._publisher.close()


def announce(options: KvEventOptions, cache: KvCache) -> KvAnnouncer:
    """Begins to announce.

    Raises:
        ConfigError: A socket can't be bound.
    """
    publisher = KvEventPublisher(options.endpoint, replay_endpoint=options.replay_endpoint, topic=options.topic)
    return KvAnnouncer(cache, publisher)
