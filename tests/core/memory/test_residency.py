from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.memory.need import Claim, MemoryKind
from sixfold.core.memory.residency import Phase, Residency
from tests.core.memory.fake_tenant import FakeTenant
from tests.fakes import FakeClock


class House:
    """A residency with a clock, and tenants on one device."""

    def __init__(self, capacity: int = 10) -> None:
        self.clock = FakeClock()
        self.ledger = MemoryLedger({"cpu": capacity})
        self.residency = Residency(self.ledger, self.clock)

    def tenant(self, name: str, size: int, *, priority: int = 0, ttl_s: float | None = None) -> FakeTenant:
        return FakeTenant(name, self.residency, {"cpu": size}, priority=priority, idle_unload_s=ttl_s)

    def bring_in(self, tenant: FakeTenant, *, load_s: float = 1.0) -> None:
        self.residency.want(tenant, spares_equals=True)
        self.residency.turn()
        tenant.end_load(self.clock(), load_s)
        self.residency.turn()


def test_a_request_loads_the_model_and_is_counted() -> None:
    house = House()
    a = house.tenant("a", 6)
    a.ask()
    house.residency.turn()
    assert a.phase is Phase.LOADING
    assert house.ledger.free() == {"cpu": 4}
    a.end_load(house.clock())
    house.residency.turn()
    assert (a.num_users, a.num_waiting, a.num_loads) == (1, 0, 1)


def test_a_model_goes_when_it_was_idle_for_long_enough_and_not_before() -> None:
    house = House()
    a = house.tenant("a", 6, ttl_s=30.0)
    house.bring_in(a)
    assert house.residency.turn() == house.clock() + 30.0
    house.clock.advance(29.0)
    a.ask()
    house.clock.advance(60.0)
    assert house.residency.turn() is None
    a.leave(house.clock())
    assert house.residency.turn() == house.clock() + 30.0
    house.clock.advance(30.0)
    assert house.residency.turn() is None
    assert a.phase is Phase.UNLOADING
    a.end_unload()
    assert house.ledger.free() == {"cpu": 10}


def test_a_request_that_comes_while_the_model_is_unloaded_loads_it_again_after_that() -> None:
    house = House()
    a = house.tenant("a", 6, ttl_s=1.0)
    house.bring_in(a)
    house.clock.advance(1.0)
    house.residency.turn()
    a.ask()
    house.residency.turn()
    assert a.phase is Phase.UNLOADING
    a.end_unload()
    house.residency.turn()
    assert (a.phase, a.num_loads) == (Phase.LOADING, 2)


def test_the_longest_idle_goes_for_a_request() -> None:
    house = House()
    a, b, c = house.tenant("a", 4), house.tenant("b", 4), house.tenant("c", 4)
    for tenant in (a, b):
        house.bring_in(tenant)
        house.clock.advance(100.0)
    c.ask()
    house.residency.turn()
    assert (a.phase, b.phase, c.phase) == (Phase.UNLOADING, Phase.IN, Phase.OUT)
    a.end_unload()
    house.residency.turn()
    assert c.phase is Phase.LOADING


def test_a_busy_model_lets_nobody_in_and_goes_when_its_last_user_has_left() -> None:
    house = House()
    a, b = house.tenant("a", 8), house.tenant("b", 8)
    house.bring_in(a)
    house.clock.advance(100.0)
    a.ask()
    b.ask()
    house.residency.turn()
    assert (a.is_leaving, a.phase) == (True, Phase.IN)
    a.ask()  # waits for its turn after b
    house.residency.turn()
    assert (a.num_users, a.num_waiting) == (1, 1)
    a.leave(house.clock())
    house.residency.turn()
    assert a.phase is Phase.UNLOADING
    a.end_unload()
    house.residency.turn()
    assert (a.phase, b.phase) == (Phase.OUT, Phase.LOADING)
    b.end_load(house.clock())
    due_s = house.residency.turn()
    assert due_s is not None and due_s > house.clock()
    house.clock.now_s = due_s
    b.leave(house.clock())
    house.residency.turn()
    assert b.phase is Phase.UNLOADING


def test_a_model_need_not_go_when_those_it_would_go_for_have_left() -> None:
    house = House()
    a, b = house.tenant("a", 8), house.tenant("b", 8)
    house.bring_in(a)
    house.clock.advance(100.0)
    a.ask()
    b.ask()
    house.residency.turn()
    a.ask()
    b.num_waiting = 0  # its client left
    house.residency.turn()
    assert not a.is_leaving
    assert (a.num_users, a.num_waiting) == (2, 0)
    assert (a.num_unloads, b.num_loads) == (0, 0)


@pytest.mark.parametrize("load_s", [0.1, 20.0])
def test_two_models_that_do_not_fit_together_load_a_quarter_of_the_time_at_most(load_s: float) -> None:
    house = House()
    a, b = house.tenant("a", 8), house.tenant("b", 8)
    began_s, loading_s = house.clock(), 0.0
    for _ in range(200):  # a request for each, at all times
        for tenant in (a, b):
            if not tenant.num_users and not tenant.num_waiting:
                tenant.ask()
        due_s = house.residency.turn()
        for tenant in (a, b):
            if tenant.phase is Phase.LOADING:
                house.clock.advance(load_s)
                loading_s += load_s
                tenant.end_load(house.clock(), load_s)
            elif tenant.phase is Phase.UNLOADING:
                tenant.end_unload()
            elif tenant.num_users:
                tenant.leave(house.clock())
        if due_s is not None:
            house.clock.now_s = max(house.clock(), due_s)
    assert min(a.num_loads, b.num_loads) > 10
    assert loading_s <= 0.26 * (house.clock() - began_s)


def test_a_small_model_that_comes_later_does_not_take_the_room_that_a_large_one_waits_for() -> None:
    house = House()
    a, large, small = house.tenant("a", 6), house.tenant("large", 9), house.tenant("small", 3)
    house.bring_in(a)
    house.clock.advance(100.0)
    a.ask()
    large.ask()
    small.ask()
    house.residency.turn()
    assert small.phase is Phase.OUT and not small.refusals  # it waits, though three bytes are free
    a.leave(house.clock())
    house.residency.turn()
    a.end_unload()
    house.residency.turn()
    assert (large.phase, small.phase) == (Phase.LOADING, Phase.OUT)


def test_the_more_important_of_two_that_wait_loads_first() -> None:
    house = House()
    low, high = house.tenant("low", 8), house.tenant("high", 8, priority=1)
    low.ask()
    high.ask()
    house.residency.turn()
    assert (low.phase, high.phase) == (Phase.OUT, Phase.LOADING)


def test_a_refusal_says_who_has_the_memory() -> None:
    house = House(capacity=10 << 30)
    a, b = house.tenant("a", 8 << 30, priority=1), house.tenant("b", 4 << 30)
    house.bring_in(a)
    b.ask()
    house.residency.turn()
    ((reason, never),) = b.refusals
    assert not never
    assert reason == (
        "it needs 4.0 GiB of cpu, 2.0 GiB more than may be taken from others (cpu has 10.0 GiB: a 8.0 GiB, free 2.0 GiB)"
    )


def test_what_would_not_fit_alone_is_refused_for_good() -> None:
    house = House()
    house.ledger.claim("server", "the server", [Claim(device="cpu", kind=MemoryKind.PROCESS, num_bytes=2)])
    a, b = house.tenant("a", 9), house.tenant("b", 8)
    for tenant in (a, b):
        tenant.ask()
    house.residency.turn()
    assert [never for _reason, never in a.refusals] == [True]
    assert b.phase is Phase.LOADING and not b.refusals


def test_a_load_that_fails_gives_its_memory_back() -> None:
    house = House()
    a, b = house.tenant("a", 8), house.tenant("b", 8)
    a.ask()
    house.residency.turn()
    b.ask()
    house.residency.turn()
    assert b.phase is Phase.OUT
    a.fail_load()
    house.residency.turn()
    assert (a.phase, b.phase) == (Phase.OUT, Phase.LOADING)


def test_a_model_that_sleeps_lends_its_gpu_and_waits_for_room_to_wake_up() -> None:
    clock = FakeClock()
    ledger = MemoryLedger({"cpu": 10, "cuda:0": 8})
    residency = Residency(ledger, clock)
    sleeper = FakeTenant("sleeper", residency, {"cpu": 2, "cuda:0": 6})
    other = FakeTenant("other", residency, {"cpu": 2, "cuda:0": 6})
    for tenant in (sleeper, other):
        tenant.ask()
        residency.turn()
        if tenant is other:
            assert (sleeper.phase, other.phase) == (Phase.IN, Phase.LOADING)  # nobody went for it
        tenant.end_load(clock())
        tenant.leave(clock())
        sleeper.asleep = True
        residency.turn()
    assert ledger.free() == {"cpu": 6, "cuda:0": 2}
    clock.advance(100.0)
    sleeper.ask()
    residency.turn()
    assert (sleeper.num_waiting, other.phase) == (1, Phase.UNLOADING)
    other.end_unload()
    residency.turn()
    assert (sleeper.num_users, sleeper.num_waiting, sleeper.num_loads) == (1, 0, 1)
    sleeper.asleep = False
    assert ledger.free() == {"cpu": 8, "cuda:0": 2}


class HouseMachine(RuleBasedStateMachine):
    """Requests, loads and unloads in any order: memory is never promised twice and nobody waits for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House()
        self.tenants = [
            self.house.tenant("a", 6, ttl_s=20.0),
            self.house.tenant("b", 5),
            self.house.tenant("c", 4, priority=1),
            self.house.tenant("d", 3, priority=-1, ttl_s=5.0),
        ]

    pick = st.integers(0, 3)

    @rule(index=pick)
    def ask(self, index: int) -> None:
        self.tenants[index].ask()
        self.house.residency.turn()

    @rule(index=pick)
    def leave(self, index: int) -> None:
        if self.tenants[index].num_users:
            self.tenants[index].leave(self.house.clock())
            self.house.residency.turn()

    @rule(index=pick)
    def give_up(self, index: int) -> None:
        self.tenants[index].num_waiting = 0
        self.house.residency.turn()

    @rule(index=pick, fails=st.booleans())
    def end_load(self, index: int, fails: bool) -> None:
        tenant = self.tenants[index]
        if tenant.phase is Phase.LOADING:
            tenant.fail_load() if fails else tenant.end_load(self.house.clock(), 1.0)
            self.house.residency.turn()

    @rule(index=pick)
    def end_unload(self, index: int) -> None:
        if self.tenants[index].phase is Phase.UNLOADING:
            self.tenants[index].end_unload()
            self.house.residency.turn()

    @rule(seconds=st.floats(0.0, 30.0))
    def pass_time(self, seconds: float) -> None:
        self.house.clock.advance(seconds)
        self.house.residency.turn()

    @invariant()
    def memory_is_never_promised_twice(self) -> None:
        held = sum(t.num_bytes["cpu"] for t in self.tenants if t.phase is not Phase.OUT)
        assert held <= 10
        assert self.house.ledger.free() == {"cpu": 10 - held}

    @invariant()
    def nobody_is_refused_for_a_less_important_model(self) -> None:
        most_important = self.tenants[2]
        assert not most_important.refusals

    @invariant()
    def used_models_stay(self) -> None:
        assert all(t.phase is Phase.IN for t in self.tenants if t.num_users)

    def teardown(self) -> None:
        """Once requests end and loads succeed, everybody who still waits is served or refused."""
        for _ in range(200):
            for tenant in self.tenants:
                if tenant.phase is Phase.LOADING:
                    tenant.end_load(self.house.clock(), 1.0)
                elif tenant.phase is Phase.UNLOADING:
                    tenant.end_unload()
                elif tenant.num_users:
                    tenant.leave(self.house.clock())
            self.house.clock.advance(3.0)
            self.house.residency.turn()
        assert not any(t.num_waiting for t in self.tenants)


TestHouse = HouseMachine.TestCase
TestHouse.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
