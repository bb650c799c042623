"""Decides which models are in memory: who may load, who goes for whom, and who has been idle for too long.

Everything is decided in `Residency.turn`, from what is true at the moment it is called: who waits, who uses what, what time
it is. It changes nothing but the ledger and starts nothing but loads and unloads, so it can be called at any time and as
often as one likes; a test calls it with a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Protocol

from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.memory.need import Claim, format_bytes
from sixfold.core.memory.room import Evict, Fits, NoRoom, Resident, Wait, Wish, decide_room

_MIN_PROTECTED_S = 5.0
_PROTECTED_LOADS = 3.0
"""A loaded model stays for this many times what its loading took: two that take turns load a quarter of the time at most."""


class Phase(Enum):
    """Where a tenant is on its way into memory and out of it."""

    OUT = auto()
    LOADING = auto()
    IN = auto()
    UNLOADING = auto()


class Tenant(Protocol):
    """A model that may be in memory. It alone changes its phase, but for `Residency` leading it to LOADING or UNLOADING."""

    phase: Phase
    is_leaving: bool
    """It lets nobody in, and goes when those who use it have left."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def priority(self) -> int:
        """The larger, the later it must go."""
        ...

    @property
    def idle_unload_s(self) -> float | None:
        """It goes when nobody has used it for so long; None: only for others."""
        ...

    @property
    def dormant_devices(self) -> frozenset[str]:
        """Devices whose memory it gives away while nobody uses it, if it does so now."""
        ...

    @property
    def num_users(self) -> int:
        """Requests that use it."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests that wait for it."""
        ...

    @property
    def idle_since_s(self) -> float:
        """When the last user left."""
        ...

    @property
    def loaded_at_s(self) -> float:
        """When it was loaded last."""
        ...

    @property
    def load_s(self) -> float:
        """How long that took."""
        ...

    def claims(self, free_bytes: Mapping[str, int]) -> tuple[Claim, ...]:
        """What it would take, where so much is free."""
        ...

    def begin_load(self) -> None:
        """Its memory is claimed: load now. Calls `Residency.turn` when that has ended in any way."""
        ...

    def begin_unload(self) -> None:
        """Nobody uses it: end its processes. Calls `Residency.turn` after that."""
        ...

    def stay(self) -> None:
        """It need not go after all, or has room to wake up: those who wait may use it."""
        ...

    def refuse(self, reason: str, *, never: bool) -> None:
        """There is no room; ``reason`` names who has it. ``never``: it would not fit alone either."""
        ...


class Residency:
    """The order in which the models of one server get memory. Used in its event loop.

    Args:
        ledger: The account of all devices.
        clock: Monotonic seconds.
    """

    def __init__(self, ledger: MemoryLedger, clock: Callable[[], float]) -> None:
        self.ledger = ledger
        self._clock = clock
        self._tenants: dict[Tenant, None] = {}
        self._wishes: dict[Tenant, bool] = {}  # in the order of arrival; whether it spares its equals

    def add(self, tenant: Tenant) -> None:
        """Makes a model known."""
        self._tenants[tenant] = None

    def remove(self, tenant: Tenant) -> None:
        """Forgets a model whose processes have ended."""
        self._tenants.pop(tenant, None)
        self._wishes.pop(tenant, None)
        self.ledger.give_back(tenant)

    def want(self, tenant: Tenant, *, spares_equals: bool = False) -> None:
        """Notes that a model shall be loaded; `turn` does it.

        Args:
            tenant: Out of memory, or on its way out.
            spares_equals: Nobody waits for it: models of the same priority need not go.
        """
        self._wishes[tenant] = self._wishes.get(tenant, True) and spares_equals

    @property
    def has_wishes(self) -> bool:
        """Whether a model waits for memory."""
        return bool(self._wishes)

    def loaded(self, tenant: Tenant, measured: Mapping[str, int]) -> None:
        """A model is in memory, and was seen to take so much."""
        self.ledger.measure(tenant, measured)

    def gone(self, tenant: Tenant) -> None:
        """A model's processes have ended, or never came up."""
        self.ledger.give_back(tenant)

    def turn(self) -> float | None:
        """Does all that can be done now; returns when it must be called again even if nothing happens, or None."""
        now_s = self._clock()
        due_s = self._unload_idle(now_s)
        for tenant in self._tenants:
            self.ledger.rest(tenant, tenant.dormant_devices)
        leaving: set[Tenant] = set()
        promised: list[Resident] = []  # those that wait for room; it is not there for those that come after them
        free = self.ledger.free()
        for tenant in sorted(self._wishes, key=lambda t: -t.priority):  # stable: the first to come first
            if tenant.phase is not Phase.OUT and not tenant.dormant_devices:
                continue
            if not self._wishes[tenant] and not tenant.num_waiting:
                del self._wishes[tenant]  # all who waited have left
                continue
            until_s = self._grant(tenant, free, leaving, promised, now_s)
            due_s = min((t for t in (due_s, until_s) if t is not None), default=None)
        for tenant in self._tenants:
            if tenant.phase is Phase.IN:
                self._lead(tenant, is_leaving=tenant in leaving)
        return due_s

    def _unload_idle(self, now_s: float) -> float | None:
        """Ends what was idle for too long; returns when the next will have been."""
        next_s: list[float] = []
        for tenant in self._tenants:
            if tenant.phase is Phase.IN and not tenant.num_users and tenant.idle_unload_s is not None:
                due_s = tenant.idle_since_s + tenant.idle_unload_s
                if due_s <= now_s:
                    tenant.begin_unload()
                else:
                    next_s.append(due_s)
        return min(next_s, default=None)

    def _grant(
        self, tenant: Tenant, free: dict[str, int], leaving: set[Tenant], promised: list[Resident], now_s: float
    ) -> float | None:
        """Takes one wish a step further; what it needs is no longer free for those that come after it."""
        claims = tenant.claims(free) if tenant.phase is Phase.OUT else ()
        need = self.ledger.resting(tenant)
        for claim in claims:
            need[claim.device] = need.get(claim.device, 0) + claim.num_bytes
        wish = Wish(need_bytes=need, priority=tenant.priority, spares_equals=self._wishes[tenant])
        residents = [self._resident(other, other in leaving) for other in self._tenants if other is not tenant]
        decision = decide_room(free, [*residents, *promised], wish, now_s)
        if isinstance(decision, NoRoom):
            del self._wishes[tenant]
            never = any(need[device] > self._most(device) for device in decision.short_bytes)
            tenant.refuse(self._explain(need, decision), never=never)
            return None
        for device, num_bytes in need.items():
            if device in free:
                free[device] -= num_bytes
        if isinstance(decision, Fits):
            del self._wishes[tenant]
            if tenant.phase is Phase.OUT:
                self.ledger.claim(tenant, tenant.name, claims)
                tenant.begin_load()
            else:
                self.ledger.rest(tenant, ())
                tenant.stay()
            return None
        promised.append(Resident(key=tenant, held_bytes=need, priority=tenant.priority, is_moving=True))
        if isinstance(decision, Evict):
            leaving.update(other for other in self._tenants if other in decision.keys)
        return decision.until_s if isinstance(decision, Wait) else None

    def _lead(self, tenant: Tenant, *, is_leaving: bool) -> None:
        was_leaving, tenant.is_leaving = tenant.is_leaving, is_leaving
        if is_leaving and not tenant.num_users:
            tenant.begin_unload()
        elif was_leaving and not is_leaving:
            self._wishes.pop(tenant, None)
            tenant.stay()

    def _resident(self, tenant: Tenant, is_leaving: bool) -> Resident:
        protected_s = max(_MIN_PROTECTED_S, _PROTECTED_LOADS * tenant.load_s)
        return Resident(
            key=tenant,
            held_bytes=self.ledger.held(tenant),
            priority=tenant.priority,
            is_busy=tenant.num_users > 0,
            idle_since_s=tenant.idle_since_s,
            protected_until_s=tenant.loaded_at_s + protected_s,
            is_moving=tenant.phase is Phase.LOADING,
            is_going=is_leaving or tenant.phase is Phase.UNLOADING,
        )

    def _most(self, device: str) -> int:
        """What a model would have if all others had gone: all but what the server itself takes."""
        return self.ledger.free()[device] + sum(self.ledger.held(tenant).get(device, 0) for tenant in self._tenants)

    def _explain(self, need: Mapping[str, int], decision: NoRoom) -> str:
        parts: list[str] = []
        for device, short in decision.short_bytes.items():
            never = need[device] > self._most(device)
            what = "there is" if never else "may be taken from others"
            parts.append(
                f"it needs {format_bytes(need[device])} of {device}, {format_bytes(short)} more than {what} "
                f"({self.ledger.explain(device)})"
            )
        return "; ".join(parts)
