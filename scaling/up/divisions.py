"""Tells further gateways, by the registry, how requests are divided while models are rolled out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from sixfold.scaling.registry import Division, Registry, RegistryUnavailable

_LOG = logging.getLogger(__name__)


class DivisionTeller:
    """Writes what has changed. Used in one event loop, which it does not block.

    Args:
        registry: Where further gateways read it.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._told: dict[str, Division | None] = {}

    async def tell(self, services: Collection[str], divisions: Mapping[str, Division]) -> None:
        """Says how requests are divided now; what could not be said is said at the next call.

        Args:
            services: All that run: of each the first call says it, as a division may be left of an earlier process.
            divisions: By service, of those that are divided.
        """
        for service in sorted({*services, *self._told}):
            division = divisions.get(service)
            if service in self._told and self._told[service] == division:
                continue
            try:
                await asyncio.to_thread(self._registry.divide, service, division)
            except RegistryUnavailable as error:
                _LOG.warning("other gateways are not told how requests for %s are divided: %s", service, error)
                return
            self._told[service] = division
