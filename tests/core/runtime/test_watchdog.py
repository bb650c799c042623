"""A worker hangs if it is at one thing for too long, or says nothing; a machine that stands still makes none hang."""

from __future__ import annotations

import pytest

from sixfold.core.batching.in_progress import InProgress
from sixfold.core.config import Limits, ModelEntry
from sixfold.core.runtime.watchdog import ALIVE_EVERY_S, LOOK_EVERY_S, Watchdog


def test_what_has_run_for_the_most_looks_is_told() -> None:
    work = InProgress()
    assert work.look() == ("", 0)
    with work.doing("a step"):
        assert work.look() == ("a step", 0)
        with work.doing("making a result"):
            assert work.look() == ("a step", 1)
        assert work.look() == ("a step", 2)
    with work.doing("a step"):
        assert work.look() == ("a step", 0)  # another one
    assert work.look() == ("", 0)


def test_work_that_raises_has_ended() -> None:
    work = InProgress()
    with pytest.raises(KeyError), work.doing("a step"):
        raise KeyError
    assert work.look() == ("", 0)


def test_steps_that_follow_each_other_never_add_up() -> None:
    work = InProgress()
    for _ in range(100):
        with work.doing("a step"):
            assert work.look() == ("a step", 0)


def looks(watchdog: Watchdog, seconds: float) -> list[str | None]:
    return [watchdog.look() for _ in range(round(seconds / LOOK_EVERY_S))]


def test_who_is_at_something_for_too_long_hangs() -> None:
    watchdog = Watchdog(30.0)
    watchdog.told("a step", 29.0)
    assert watchdog.look() is None
    watchdog.told("a step", 30.0)
    assert watchdog.look() == "a step has not ended for 30 s"


def test_who_says_nothing_for_too_long_hangs() -> None:
    watchdog = Watchdog(30.0)
    assert set(looks(watchdog, 29.0)) == {None}
    watchdog.heard()
    assert set(looks(watchdog, 30.0)) == {None}
    assert looks(watchdog, 2 * ALIVE_EVERY_S)[-1] == "nothing was heard of it for 31 s"


def test_without_a_limit_nobody_hangs() -> None:
    watchdog = Watchdog(None)
    watchdog.told("a step", 1e9)
    assert set(looks(watchdog, 1000.0)) == {None}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 600.0),
        ({"request_timeout_s": 30.0}, 30.0),
        ({"request_timeout_s": None}, None),
        ({"request_timeout_s": None, "watchdog_timeout_s": 60.0}, 60.0),
        ({"watchdog_timeout_s": 5.0}, 5.0),
    ],
)
def test_unless_it_is_configured_it_is_the_time_of_a_request(limits: dict[str, float], expected: float | None) -> None:
    entry = ModelEntry(name="m", source="folder:m", limits=Limits.model_validate(limits))
    assert entry.limits.hangs_after_s == expected
