from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.memory.room import Evict, Fits, NoRoom, Resident, Wait, Wish, decide_room

NOW_S = 100.0


def resident(key: str, gib: int, *, priority: int = 0, busy: bool = False, idle_since_s: float = 0.0) -> Resident:
    return Resident(key=key, held_bytes={"cpu": gib}, priority=priority, is_busy=busy, idle_since_s=idle_since_s)


def decide(free: int, residents: Sequence[Resident], need: int, *, priority: int = 0, spares: bool = False) -> object:
    wish = Wish(need_bytes={"cpu": need}, priority=priority, spares_equals=spares)
    return decide_room({"cpu": free}, residents, wish, NOW_S)


def test_what_fits_makes_nobody_go() -> None:
    assert decide(4, [resident("a", 4)], 4) == Fits()


def test_a_device_that_is_not_known_has_room_for_everything() -> None:
    wish = Wish(need_bytes={"cuda:7": 1 << 60}, priority=0)
    assert decide_room({"cpu": 0}, [], wish, NOW_S) == Fits()


def test_the_least_important_goes_first_then_the_idle_then_the_longest_idle() -> None:
    crowd = [
        resident("important", 1, priority=1, idle_since_s=0.0),
        resident("busy", 1, busy=True, idle_since_s=1.0),
        resident("young", 1, idle_since_s=9.0),
        resident("old", 1, idle_since_s=3.0),
    ]
    assert decide(0, crowd, 1, priority=1) == Evict(("old",))
    assert decide(0, crowd, 2, priority=1) == Evict(("old", "young"))
    assert decide(0, crowd, 3, priority=1) == Evict(("old", "young", "busy"))
    assert decide(0, crowd, 4, priority=1) == Evict(("old", "young", "busy", "important"))


def test_a_more_important_model_never_goes() -> None:
    assert decide(0, [resident("a", 4, priority=1)], 2) == NoRoom({"cpu": 2})


def test_equals_are_spared_by_what_nobody_waits_for() -> None:
    assert decide(0, [resident("a", 4)], 2, spares=True) == NoRoom({"cpu": 2})
    assert decide(0, [resident("a", 4, priority=-1)], 2, spares=True) == Evict(("a",))


def test_nobody_goes_in_vain() -> None:
    assert decide(0, [resident("a", 2), resident("b", 9, priority=1)], 3) == NoRoom({"cpu": 1})


def test_one_that_was_taken_for_little_stays_where_a_larger_one_goes() -> None:
    crowd = [resident("small", 1, idle_since_s=0.0), resident("large", 8, idle_since_s=5.0)]
    assert decide(0, crowd, 6) == Evict(("large",))


def test_one_that_was_just_loaded_is_waited_for_and_goes_at_once_for_the_more_important() -> None:
    young = Resident(key="a", held_bytes={"cpu": 4}, priority=0, protected_until_s=NOW_S + 7.0)
    assert decide(0, [young], 4) == Wait(NOW_S + 7.0)
    assert decide(0, [young], 4, priority=1) == Evict(("a",))


def test_what_is_going_already_is_waited_for_and_nobody_goes_besides() -> None:
    going = Resident(key="a", held_bytes={"cpu": 4}, priority=5, is_going=True)
    assert decide(0, [going, resident("b", 4)], 4) == Wait(None)
    assert decide(0, [going, resident("b", 4)], 6) == Evict(("b",))


def test_one_that_is_being_loaded_is_waited_for() -> None:
    loading = Resident(key="a", held_bytes={"cpu": 4}, priority=0, is_moving=True)
    assert decide(0, [loading], 4) == Wait(None)


RESIDENTS = st.lists(
    st.builds(
        Resident,
        key=st.uuids(),
        held_bytes=st.dictionaries(st.sampled_from(("cpu", "cuda:0", "cuda:1")), st.integers(0, 8)),
        priority=st.integers(-1, 2),
        is_busy=st.booleans(),
        idle_since_s=st.floats(0.0, NOW_S),
        protected_until_s=st.sampled_from((0.0, NOW_S + 1.0)),
        is_moving=st.booleans(),
        is_going=st.booleans(),
    ),
    max_size=8,
)
WISHES = st.builds(
    Wish,
    need_bytes=st.dictionaries(st.sampled_from(("cpu", "cuda:0", "cuda:9")), st.integers(0, 20), min_size=1),
    priority=st.integers(-1, 2),
    spares_equals=st.booleans(),
)
FREE = st.fixed_dictionaries({"cpu": st.integers(-4, 8), "cuda:0": st.integers(0, 8), "cuda:1": st.integers(0, 8)})


def fits(free: dict[str, int], wish: Wish, gone: Sequence[Resident]) -> bool:
    return all(
        need <= free[device] + sum(r.held_bytes.get(device, 0) for r in gone)
        for device, need in wish.need_bytes.items()
        if device in free and need
    )


@given(FREE, RESIDENTS, WISHES)
def test_an_eviction_makes_room_with_as_few_as_may_go(
    free: dict[str, int], residents: list[Resident], wish: Wish
) -> None:
    decision = decide_room(free, residents, wish, NOW_S)
    going = [r for r in residents if r.is_going]
    assert isinstance(decision, Fits) == fits(free, wish, ())
    if isinstance(decision, Evict):
        victims = [r for r in residents if r.key in decision.keys]
        assert fits(free, wish, [*going, *victims])
        for victim in victims:
            assert not fits(free, wish, [*going, *(v for v in victims if v is not victim)])
            assert not victim.is_moving and not victim.is_going
            assert victim.priority < wish.priority or (
                victim.priority == wish.priority and not wish.spares_equals and victim.protected_until_s <= NOW_S
            )


@given(FREE, RESIDENTS, WISHES)
def test_a_refusal_is_final_until_others_go_by_themselves(
    free: dict[str, int], residents: list[Resident], wish: Wish
) -> None:
    decision = decide_room(free, residents, wish, NOW_S)
    may_go = [
        r
        for r in residents
        if r.is_going or r.priority < wish.priority or (r.priority == wish.priority and not wish.spares_equals)
    ]
    assert isinstance(decision, NoRoom) == (not fits(free, wish, may_go))


@given(FREE, RESIDENTS, WISHES)
def test_a_wait_ends_by_the_time_it_says_or_by_something_that_moves(
    free: dict[str, int], residents: list[Resident], wish: Wish
) -> None:
    decision = decide_room(free, residents, wish, NOW_S)
    if isinstance(decision, Wait):
        if decision.until_s is None:
            assert any(r.is_going or r.is_moving for r in residents)
        else:
            later = decide_room(free, residents, wish, decision.until_s)
            assert later != decision
