"""Decides how a model that wants to load gets its memory: a pure function of a snapshot and the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A model that has memory.

    Attributes:
        key: Tells it from others.
        held_bytes: By device.
        priority: The larger, the later it must go.
        is_busy: Requests use it: it can only go when these have ended.
        idle_since_s: When its last request ended, or when it was loaded.
        protected_until_s: It was loaded a moment ago: until then only a model of higher priority makes it go. So two models
            that do not fit together take turns that are long beside the time that loading takes.
        is_moving: It is being loaded, or is going already.
        is_going: It is going already: what it has will be free.
    """

    key: object
    held_bytes: Mapping[str, int]
    priority: int
    is_busy: bool = False
    idle_since_s: float = 0.0
    protected_until_s: float = 0.0
    is_moving: bool = False
    is_going: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A model that wants memory.

    Attributes:
        need_bytes: By device.
        priority: Of the model.
        spares_equals: Only models of lower priority go for it: nobody waits for it yet.
    """

    need_bytes: Mapping[str, int]
    priority: int
    spares_equals: bool = False


@dataclass(frozen=True, slots=True)
class Fits:
    """There is room now."""


@dataclass(frozen=True, slots=True)
class Evict:
    """There will be room when these have gone; the least important first. No smaller part of them would do."""

    keys: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """There will be room later: something is on its way, or is protected until ``until_s``."""

    until_s: float | None


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Nothing that may go would make room.

    Attributes:
        short_bytes: What is missing even then, by device.
    """

    short_bytes: Mapping[str, int]


def decide_room(
    free_bytes: Mapping[str, int], residents: Sequence[Resident], wish: Wish, now_s: float
) -> Fits | Evict | Wait | NoRoom:
    """How the wish comes true. Devices that ``free_bytes`` does not know have room for everything.

    Models go by priority, idle ones before busy ones, those that were idle longest first; never one of higher priority than
    the wish, and none in vain.
    """
    missing = _missing(free_bytes, wish.need_bytes, ())
    if not missing:
        return Fits()
    going = [r for r in residents if r.is_going]
    if not _missing(free_bytes, wish.need_bytes, going):
        return Wait(None)
    may_go = [r for r in residents if not r.is_going and _yields(r, wish) and any(r.held_bytes.get(d) for d in missing)]
    short = _missing(free_bytes, wish.need_bytes, [*going, *may_go])
    if short:
        return NoRoom(short)
    candidates = [r for r in may_go if not r.is_moving and (r.priority < wish.priority or r.protected_until_s <= now_s)]
    candidates.sort(key=lambda r: (r.priority, r.is_busy, r.idle_since_s))
    if _missing(free_bytes, wish.need_bytes, [*going, *candidates]):
        times_s = [r.protected_until_s for r in may_go if not r.is_moving and r.protected_until_s > now_s]
        return Wait(min(times_s, default=None))
    victims: list[Resident] = []
    for candidate in candidates:
        if not _missing(free_bytes, wish.need_bytes, [*going, *victims]):
            break
        victims.append(candidate)
    for victim in reversed(
        tuple(victims)
    ):  # one that was taken for little may not be needed beside a later, larger one
        others = [v for v in victims if v is not victim]
        if not _missing(free_bytes, wish.need_bytes, [*going, *others]):
            victims = others
    return Evict(tuple(victim.key for victim in victims))


def _yields(resident: Resident, wish: Wish) -> bool:
    return resident.priority < wish.priority or (resident.priority == wish.priority and not wish.spares_equals)


def _missing(free: Mapping[str, int], need: Mapping[str, int], gone: Iterable[Resident]) -> dict[str, int]:
    """What is missing on each device once these have gone; empty if nothing is."""
    gone = tuple(gone)
    missing: dict[str, int] = {}
    for device, wanted in need.items():
        if device in free and wanted > 0:
            short = wanted - free[device] - sum(r.held_bytes.get(device, 0) for r in gone)
            if short > 0:
                missing[device] = short
    return missing
