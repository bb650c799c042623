"""Readers of foreign bytes refuse what they can't read, in their own words and soon; `python -m tests.fuzz` looks for hours."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import inputs
from tests.fuzz.target import TALKERS, Target
from tests.fuzz.targets import GROUPS, targets_of
from tests.quiet import quiet

TARGETS = [target for group in GROUPS for target in targets_of(group)]
EACH = pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])

pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries think of broken files is no news here


@pytest.fixture(autouse=True)
def _without_lines() -> Iterator[None]:
    with quiet(*TALKERS):
        yield


@EACH
def test_what_it_was_made_for_and_what_broke_it_once_is_taken_or_refused(target: Target) -> None:
    for data in (*target.seeds, *target.broke):
        began_s = perf_counter()
        target.attempt(data)
        assert perf_counter() - began_s < target.budget_s


@EACH
def test_inputs_near_good_ones_are_taken_or_refused(target: Target) -> None:
    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(data=st.data())
    def read(data: st.DataObject) -> None:
        target.attempt(data.draw(inputs(target)))

    read()


def test_the_table_names_each_reader_once() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    assert all(target.seeds for target in TARGETS)
