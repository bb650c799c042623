"""Keeps account of every device's memory: who has how much of it for what, and what is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sixfold.core.memory.need import Claim, format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one holder has.

    Attributes:
        holder: A model's name, or what else holds memory.
        claims: By device and kind.
        measured: What it was seen to take after it had loaded, by device.
        resting: Devices whose memory it has given away until it is used again.
    """

    holder: str
    claims: tuple[Claim, ...]
    measured: Mapping[str, int]
    resting: frozenset[str] = frozenset()

    def on(self, device: str) -> int:
        """Bytes that count as taken on a device: the more of what was claimed and what was seen."""
        return 0 if device in self.resting else self.when_used(device)

    def when_used(self, device: str) -> int:
        """Bytes that it takes of a device, or takes back when it is used again."""
        claimed = sum(claim.num_bytes for claim in self.claims if claim.device == device)
        return max(claimed, self.measured.get(device, 0))

    @property
    def by_device(self) -> dict[str, int]:
        """What counts as taken, by device."""
        devices = {claim.device for claim in self.claims} | self.measured.keys()
        return {device: self.on(device) for device in sorted(devices)}


class MemoryLedger:
    """The account of one server. Used in its event loop only.

    A claim is made before a model loads and given back when its last process has ended. What is measured replaces a claim
    only upwards: a cache that is not filled yet will be.

    Args:
        capacities: Bytes by device; of other devices nothing is known, and everything fits there.
    """

    def __init__(self, capacities: Mapping[str, int]) -> None:
        self._capacities = dict(capacities)
        self._holdings: dict[object, Holding] = {}

    @property
    def capacities(self) -> Mapping[str, int]:
        """Bytes by device."""
        return self._capacities

    @property
    def holdings(self) -> tuple[Holding, ...]:
        """What everybody has, in the order in which it was claimed."""
        return tuple(self._holdings.values())

    def free(self) -> dict[str, int]:
        """Bytes that nobody has, by device; negative where more was measured than there is."""
        return {
            device: capacity - sum(holding.on(device) for holding in self._holdings.values())
            for device, capacity in self._capacities.items()
        }

    def held(self, key: object) -> Mapping[str, int]:
        """What counts as taken by the holder, by device."""
        found = self._holdings.get(key)
        return {} if found is None else found.by_device

    def claim(self, key: object, holder: str, claims: Iterable[Claim]) -> None:
        """Gives memory to a holder, instead of what it had; whether it fits was asked before (`decide_room`)."""
        self._holdings[key] = Holding(holder=holder, claims=tuple(claims), measured={})

    def measure(self, key: object, measured: Mapping[str, int]) -> None:
        """Notes what a holder was seen to take."""
        found = self._holdings.get(key)
        if found is not None:
            self._holdings[key] = dataclasses.replace(found, measured=dict(measured))

    def rest(self, key: object, devices: Iterable[str]) -> None:
        """Notes the devices whose memory a holder has given away for now; none, when it takes all back."""
        found = self._holdings.get(key)
        if found is not None and found.resting != (resting := frozenset(devices)):
            self._holdings[key] = dataclasses.replace(found, resting=resting)

    def resting(self, key: object) -> dict[str, int]:
        """What a holder will take back when it is used again, by device."""
        found = self._holdings.get(key)
        return {} if found is None else {device: found.when_used(device) for device in sorted(found.resting)}

    def give_back(self, key: object) -> None:
        """Takes all of a holder's memory back; harmless when it has none."""
        self._holdings.pop(key, None)

    def explain(self, device: str) -> str:
        """Who has how much of a device, for messages: ``cpu has 8.0 GiB: chat 3.0 GiB, embed 600 MiB, free 4.4 GiB``."""
        parts = [f"{h.holder} {format_bytes(h.on(device))}" for h in self._holdings.values() if h.on(device)]
        parts.append(f"free {format_bytes(self.free()[device])}")
        return f"{device} has {format_bytes(self._capacities[device])}: {', '.join(parts)}"
