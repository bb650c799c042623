"""A tenant of the memory whose loads and unloads a test ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sixfold.core.memory.need import Claim, MemoryKind
from sixfold.core.memory.residency import Phase, Residency


@dataclass(eq=False)
class FakeTenant:
    name: str
    residency: Residency
    num_bytes: Mapping[str, int]
    priority: int = 0
    idle_unload_s: float | None = None
    phase: Phase = Phase.OUT
    is_leaving: bool = False
    num_users: int = 0
    num_waiting: int = 0
    idle_since_s: float = 0.0
    loaded_at_s: float = 0.0
    load_s: float = 0.0
    asleep: bool = False
    num_loads: int = 0
    num_unloads: int = 0
    refusals: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])

    def __post_init__(self) -> None:
        self.residency.add(self)

    @property
    def dormant_devices(self) -> frozenset[str]:
        asleep = self.asleep and not self.num_users and self.phase is Phase.IN
        return frozenset({"cuda:0"}) if asleep else frozenset()

    def claims(self, free_bytes: Mapping[str, int]) -> tuple[Claim, ...]:
        return tuple(
            Claim(device=device, kind=MemoryKind.WEIGHTS, num_bytes=size) for device, size in self.num_bytes.items()
        )

    def begin_load(self) -> None:
        assert self.phase is Phase.OUT
        self.phase = Phase.LOADING
        self.num_loads += 1

    def begin_unload(self) -> None:
        assert self.phase is Phase.IN and not self.num_users
        self.phase = Phase.UNLOADING
        self.num_unloads += 1

    def stay(self) -> None:
        self.num_users, self.num_waiting = self.num_users + self.num_waiting, 0

    def refuse(self, reason: str, *, never: bool) -> None:
        self.num_waiting = 0
        self.refusals.append((reason, never))

    # What a test does

    def ask(self) -> None:
        """A request comes."""
        if self.phase is Phase.IN and not self.is_leaving and not self.dormant_devices:
            self.num_users += 1
        else:
            self.num_waiting += 1
            if self.phase is not Phase.LOADING:
                self.residency.want(self)

    def end_load(self, now_s: float, load_s: float = 1.0) -> None:
        assert self.phase is Phase.LOADING
        self.phase = Phase.IN
        self.loaded_at_s = self.idle_since_s = now_s
        self.load_s = load_s
        self.num_users, self.num_waiting = self.num_waiting, 0
        self.residency.loaded(self, {})

    def fail_load(self) -> None:
        assert self.phase is Phase.LOADING
        self.phase = Phase.OUT
        self.num_waiting = 0
        self.residency.gone(self)

    def end_unload(self) -> None:
        assert self.phase is Phase.UNLOADING
        self.phase = Phase.OUT
        self.residency.gone(self)

    def leave(self, now_s: float) -> None:
        assert self.num_users > 0
        self.num_users -= 1
        self.idle_since_s = now_s
