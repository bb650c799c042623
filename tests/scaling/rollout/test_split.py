"""Shares of requests among two revisions: exact, and sessions stay."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.scaling.rollout.split import Split, Splitter
from sixfold.scaling.route.router import ReplicaFacts

OLD = (ReplicaFacts(replica_id="a", revision="1"), ReplicaFacts(replica_id="b", revision="1"))
NEW = (ReplicaFacts(replica_id="c", revision="2"),)
ALL = (*OLD, *NEW)


def splitter(share: float) -> Splitter:
    return Splitter(Split(old="1", new="2", share=share))


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(1, 300))
def test_of_any_number_of_requests_the_new_revision_gets_its_share_give_or_take_one(share: float, count: int) -> None:
    found = splitter(share)
    got = sum(tuple(found.narrow(ALL)) == NEW for _ in range(count))
    assert abs(got - share * count) <= 1.0


@settings(deadline=None)
@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_session_moves_to_the_new_revision_once_and_never_back_while_the_share_grows(
    session: str, one: float, other: float
) -> None:
    small, large = sorted((one, other))
    if tuple(splitter(small).narrow(ALL, session=session)) == NEW:
        assert tuple(splitter(large).narrow(ALL, session=session)) == NEW
    assert tuple(splitter(0.0).narrow(ALL, session=session)) == OLD
    assert tuple(splitter(1.0).narrow(ALL, session=session)) == NEW


@settings(deadline=None)
@given(st.floats(0, 1), st.sets(st.sampled_from(ALL), min_size=1))
def test_a_request_always_goes_somewhere(share: float, replicas: set[ReplicaFacts]) -> None:
    assert splitter(share).narrow(tuple(replicas))


@settings(deadline=None)
@given(st.floats(0, 1))
def test_what_has_failed_before_is_tried_at_the_old_revision(share: float) -> None:
    assert tuple(splitter(share).narrow(ALL, is_retry=True)) == OLD
    assert tuple(splitter(share).narrow(NEW, is_retry=True)) == NEW
