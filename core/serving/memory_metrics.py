"""Shows Prometheus who has how much of which device's memory, and how often models come and go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sixfold.core.memory.ledger import MemoryLedger


class ResidentModel(Protocol):
    """A model that may be in memory."""

    @property
    def name(self) -> str:
        """The registry's name."""
        ...

    @property
    def measured_bytes(self) -> Mapping[str, int]:
        """What its workers have now, by device."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests that wait until it is loaded."""
        ...

    @property
    def num_loads(self) -> int:
        """How often it was loaded."""
        ...

    @property
    def num_unloads(self) -> Mapping[str, int]:
        """How often it left, by the reason: ``idle``, or ``room`` for another model."""
        ...


class MemoryHolder(Protocol):
    """The models of a server, and the account of their memory."""

    ledger: MemoryLedger

    def residences(self) -> Sequence[ResidentModel]:
        """All models."""
        ...


class MemoryCollector(Collector):
    """Reads the account when Prometheus asks.

    Args:
        host: Whose account it is.
    """

    def __init__(self, host: MemoryHolder) -> None:
        self._host = host

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there will be depends on the models."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All values at this moment."""
        yield from self._devices()
        yield from self._models()

    def _devices(self) -> Iterator[Metric]:
        ledger = self._host.ledger
        claimed = GaugeMetricFamily(
            "sixfold:memory_bytes", "Memory claimed, by what it is for.", labels=("model_name", "device", "kind")
        )
        capacity = GaugeMetricFamily("sixfold:memory_capacity_bytes", "What models may take.", labels=("device",))
        left = GaugeMetricFamily("sixfold:memory_free_bytes", "What no model has claimed.", labels=("device",))
        for holding in ledger.holdings:
            by_kind: dict[tuple[str, str], int] = {}
            for claim in holding.claims:
                key = (claim.device, claim.kind.value)
                by_kind[key] = by_kind.get(key, 0) + claim.num_bytes
            for key, num_bytes in by_kind.items():
                claimed.add_metric((holding.holder, *key), num_bytes)
        for device, num_bytes in ledger.free().items():
            capacity.add_metric((device,), ledger.capacities[device])
            left.add_metric((device,), num_bytes)
        yield from (claimed, capacity, left)

    def _models(self) -> Iterator[Metric]:
        measured = GaugeMetricFamily(
            "sixfold:memory_measured_bytes", "Memory that its processes have.", labels=("model_name", "device")
        )
        waiting = GaugeMetricFamily(
            "sixfold:num_requests_waiting_for_load", "Requests whose model is not loaded.", labels=("model_name",)
        )
        loads = CounterMetricFamily("sixfold:model_loads", "How often a model was loaded.", labels=("model_name",))
        unloads = CounterMetricFamily(
            "sixfold:model_unloads", "How often a model left the memory.", labels=("model_name", "reason")
        )
        for model in self._host.residences():
            for device, num_bytes in model.measured_bytes.items():
                measured.add_metric((model.name, device), num_bytes)
            waiting.add_metric((model.name,), model.num_waiting)
            loads.add_metric((model.name,), model.num_loads)
            for reason, count in model.num_unloads.items():
                unloads.add_metric((model.name, reason), count)
        yield from (measured, waiting, loads, unloads)
