"""Tells further gateways, by the registry, how requests are divided while models are rolled out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from sixfold.scaling.registry import Division, Registry, RegistryUnavailable

_LOG = logging.getLogger(__name__)

_WAIT_S = 1.0
"""For the registry, before whoever scales and rolls out goes on without it."""


class DivisionTeller:
    """Writes what has changed. Used in one event loop, which it does not block.

    Args:
        registry: Where further gateways read it.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._told: dict[str, Division | None] = {}
        self._writing: asyncio.Task[bool] | None = None

    async def tell(self, services: Collection[str], divisions: Mapping[str, Division]) -> None:
        """Says how requests are divided now; what could not be said is said at the next call.

        A registry that does not answer holds nobody up: its writing goes on, and nothing else is written before that has ended.

        Args:
            services: All that run: of each the first call says it, as a division may be left of an earlier process.
            divisions: By service, of those that are divided.
        """
        if self._writing is not None and not await _ended(self._writing):
            return
        for service in sorted({*services, *self._told}):
            division = divisions.get(service)
            if service not in self._told or self._told[service] != division:
                self._writing = asyncio.create_task(self._write(service, division))
                if not await _ended(self._writing) or not self._writing.result():
                    return

    async def _write(self, service: str, division: Division | None) -> bool:
        try:
            await asyncio.to_thread(self._registry.divide, service, division)
        except RegistryUnavailable as error:
            _LOG.warning("other gateways are not told how requests for %s are divided: %s", service, error)
            return False
        self._told[service] = division
        return True


async def _ended(writing: asyncio.Task[bool]) -> bool:
    """Whether it has; waits for that, but not for long."""
    return bool((await asyncio.wait((writing,), timeout=_WAIT_S))[0])
