"""A gateway follows the plan's shares, goes around sites that refuse or are full, and falls back to the nearest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.scaling.agent.georoute import RoutingTable, SiteView, order, shares
from sixfold.scaling.hub.model import ANY_ORIGIN, Plan, Route

PLAN = Plan(
    epoch=3,
    routes=tuple(
        Route(model="chat", origin=origin, site_id=site, weight=weight, latency_s=latency_s)
        for origin, site, weight, latency_s in (
            ("eu", "eu", 0.8, 0.01),
            ("eu", "us", 0.2, 0.09),
            ("eu", "ap", 0.0, 0.2),
            (ANY_ORIGIN, "us", 1.0, 0.2),
        )
    ),
)


def weights(views: dict[str, SiteView], origin: str = "eu") -> dict[str, object]:
    return {share.site_id: pytest.approx(share.weight) for share in shares(PLAN, "chat", origin, views, 100.0)}


def test_the_plans_shares_hold_while_all_is_well() -> None:
    assert weights({}) == {"eu": 0.8, "us": 0.2, "ap": 0.0}


def test_the_share_of_a_site_that_refuses_goes_to_the_nearest_that_does_not() -> None:
    assert weights({"eu": SiteView(refuses_until_s=101)}) == {"us": 1.0, "ap": 0.0}
    assert weights({"eu": SiteView(refuses_until_s=100)}) == {"eu": 0.8, "us": 0.2, "ap": 0.0}


def test_what_a_site_has_no_room_for_spills_over_by_distance() -> None:
    assert weights({"eu": SiteView(room=0.5)}) == {"eu": 0.5, "us": 0.5, "ap": 0.0}
    assert weights({"eu": SiteView(room=0.5), "us": SiteView(room=0.3)}) == {"eu": 0.5, "us": 0.3, "ap": 0.2}


def test_without_room_anywhere_the_plans_shares_queue() -> None:
    full = {name: SiteView(room=0.0) for name in ("eu", "us", "ap")}
    assert weights(full) == {"eu": 0.8, "us": 0.2, "ap": 0.0}


def test_clients_from_elsewhere_take_the_routes_for_any_origin() -> None:
    assert weights({}, origin="mars") == {"us": 1.0}


def test_the_draw_chooses_the_first_and_distance_the_rest() -> None:
    found = shares(PLAN, "chat", "eu", {}, 0.0)
    assert order(found, 0.79) == ("eu", "us", "ap")
    assert order(found, 0.81) == ("us", "eu", "ap")
    assert order((), 0.5) == ()


def test_a_table_takes_newer_plans_only_and_asks_again_when_the_refusal_is_over() -> None:
    table = RoutingTable(refusal_s=5)
    assert table.sites("chat", "eu", 0.0, 0.0) == ()
    assert table.offer(PLAN) and not table.offer(Plan(epoch=2))
    table.refused("chat", "eu", 0.0)
    assert table.sites("chat", "eu", 4.9, 0.0) == ("us", "ap")
    assert table.sites("chat", "eu", 5.0, 0.0) == ("eu", "us", "ap")
    table.saw("chat", "eu", room=0.0)
    assert table.sites("chat", "eu", 5.0, 0.0) == ("us", "eu", "ap")


VIEWS = st.dictionaries(
    st.sampled_from(["eu", "us", "ap"]),
    st.builds(SiteView, refuses_until_s=st.sampled_from([0.0, 200.0]), room=st.floats(0, 1)),
)


@given(VIEWS, st.floats(0, 1, exclude_max=True))
def test_no_share_goes_to_a_site_that_refuses_and_all_of_it_goes_somewhere(
    views: dict[str, SiteView], draw: float
) -> None:
    found = shares(PLAN, "chat", "eu", views, 100.0)
    asked = {"eu", "us", "ap"} - {name for name, view in views.items() if view.refuses_until_s > 100}
    assert {share.site_id for share in found} == asked
    assert all(share.weight >= 0 for share in found)
    if found:
        assert sum(share.weight for share in found) == pytest.approx(1)
    assert set(order(found, draw)) == asked
