"""What a site must start and stop so that it has what it wants, and never holds more accelerators than there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec


class Slot(NamedTuple):
    """Replicas of a model on a class of accelerators."""

    model: str
    accelerator: str


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The replicas of one slot that hold accelerators.

    Attributes:
        slot: Whose they are.
        units: Accelerators that each of them holds.
        num_active: Starting or ready.
        num_ready: Those that take requests.
        num_stopping: Those that finish their requests; they hold their accelerators until they are gone.
    """

    slot: Slot
    units: int
    num_active: int
    num_ready: int = 0
    num_stopping: int = 0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas a slot should have."""

    slot: Slot
    units: int
    num_replicas: int


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """Starts ``num_replicas`` of the slot, or stops so many where it is negative."""

    slot: Slot
    units: int
    num_replicas: int


def reconcile(targets: Sequence[Target], held: Sequence[Held], capacity: Mapping[str, int]) -> tuple[Action, ...]:
    """The next actions: stops first, and starts for which accelerators are free already.

    A stopping replica still holds its own, so what waits for them starts in a later round. Models take turns, so that one that
    misses many replicas does not keep another from its first.
    """
    wanted = {target.slot: target for target in targets}
    actions = [
        Action(slot=item.slot, units=item.units, num_replicas=-surplus)
        for item in held
        if (surplus := item.num_active - _count(wanted.get(item.slot))) > 0
    ]
    free = dict(capacity)
    active: dict[Slot, int] = {}
    for item in held:
        held_units = item.units * (item.num_active + item.num_stopping)
        free[item.slot.accelerator] = free.get(item.slot.accelerator, 0) - held_units
        active[item.slot] = active.get(item.slot, 0) + item.num_active
    starts: dict[Slot, int] = {}
    while True:
        missing = [
            target
            for target in targets
            if active.get(target.slot, 0) + starts.get(target.slot, 0) < target.num_replicas
            and target.units <= free.get(target.slot.accelerator, 0)
        ]
        if not missing:
            break
        fewest = min(missing, key=lambda target: (active.get(target.slot, 0) + starts.get(target.slot, 0), target.slot))
        starts[fewest.slot] = starts.get(fewest.slot, 0) + 1
        free[fewest.slot.accelerator] -= fewest.units
    actions += [
        Action(slot=slot, units=wanted[slot].units, num_replicas=count) for slot, count in sorted(starts.items())
    ]
    return tuple(actions)


def _count(target: Target | None) -> int:
    return 0 if target is None else target.num_replicas
