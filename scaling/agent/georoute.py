"""Which site gets a request: the plan's shares, without the sites that refuse or are full, and then the next nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from sixfold.scaling.hub.model import ANY_ORIGIN, Plan, Route

_NOTHING = 1e-9


class SiteView(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway itself saw of a site, for one model.

    Attributes:
        refuses_until_s: It is not asked before this time: it refused, broke off or did not answer.
        room: Share of the gateway's requests that it can take beside what it has, 0 to 1; 1 where nothing is known.
    """

    refuses_until_s: float = 0.0
    room: float = 1.0


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A site and its share of the requests."""

    site_id: str
    weight: float
    latency_s: float


_UNSEEN = SiteView()


def shares(plan: Plan, model: str, origin: str, views: Mapping[str, SiteView], now_s: float) -> tuple[Share, ...]:
    """The shares of the sites that may be asked now, nearest first; they make 1 unless no site may be asked.

    The plan's share of a site that refuses, and what of its share a site has no room for, spills over to the nearest sites with
    room. Where no site has room the plan's shares hold among those that do not refuse: to queue is better than to give up.

    Args:
        plan: The newest that is known.
        model: Of the request.
        origin: Of the client.
        views: By site; one that is missing was not seen to do wrong.
        now_s: The time.
    """
    routes = routes_of(plan, model, origin)
    asked = [route for route in routes if views.get(route.site_id, _UNSEEN).refuses_until_s <= now_s]
    if not asked:
        return ()
    room = {route.site_id: views.get(route.site_id, _UNSEEN).room for route in asked}
    weight = {route.site_id: min(route.weight, room[route.site_id]) for route in asked}
    spilled = max(0.0, sum(route.weight for route in routes) - sum(weight.values()))
    for route in asked:
        more = min(spilled, max(0.0, room[route.site_id] - weight[route.site_id]))
        weight[route.site_id] += more
        spilled -= more
    if spilled > _NOTHING:
        planned = sum(route.weight for route in asked)
        for route in asked:
            weight[route.site_id] += spilled * (route.weight / planned if planned else 1 / len(asked))
    total = sum(weight.values())
    if total <= 0.0:  # no hub writes such shares, and gateways don't break by what others write
        weight, total = dict.fromkeys(weight, 1.0), float(len(weight))
    return tuple(
        Share(site_id=route.site_id, weight=weight[route.site_id] / total, latency_s=route.latency_s) for route in asked
    )


def order(found: Sequence[Share], draw: float) -> tuple[str, ...]:
    """Sites to try, one after the other: the one that the draw hits, then the others by distance.

    Args:
        found: From `shares`.
        draw: Evenly distributed in [0, 1).
    """
    if not found:
        return ()
    first = found[-1]
    for share in found:
        if draw < share.weight:
            first = share
            break
        draw -= share.weight
    return (first.site_id, *(share.site_id for share in found if share is not first))


def routes_of(plan: Plan, model: str, origin: str) -> list[Route]:
    """The plan's routes for a client, nearest first; those for any origin where the plan does not know the client's."""
    routes = [route for route in plan.routes if route.model == model]
    own = [route for route in routes if route.origin == origin]
    found = own or [route for route in routes if route.origin == ANY_ORIGIN]
    return sorted(found, key=lambda route: (route.latency_s, route.site_id))


class RoutingTable:
    """A gateway's view: the newest plan that it was given, and what it saw of the sites. Owned by the gateway.

    Args:
        refusal_s: How long a site that refused is left alone.
    """

    def __init__(self, *, refusal_s: float = 5.0) -> None:
        self.plan = Plan()
        self._refusal_s = refusal_s
        self._views: dict[str, dict[str, SiteView]] = {}

    def offer(self, plan: Plan) -> bool:
        """Takes a plan if it is newer; gateways may ask any site for its plan, and sites may be behind."""
        if plan.epoch <= self.plan.epoch:
            return False
        self.plan = plan
        return True

    def saw(self, model: str, site_id: str, *, room: float) -> None:
        """A site has so much room for the gateway's requests. Whether it refuses shows by requests alone, and that stays."""
        views = self._views.setdefault(model, {})
        views[site_id] = msgspec.structs.replace(views.get(site_id, _UNSEEN), room=room)

    def refused(self, model: str, site_id: str, now_s: float) -> None:
        """A site refused the model, broke off, or did not answer."""
        views = self._views.setdefault(model, {})
        views[site_id] = msgspec.structs.replace(views.get(site_id, _UNSEEN), refuses_until_s=now_s + self._refusal_s)

    def refuses(self, model: str, site_id: str, now_s: float) -> bool:
        """Whether the site is left alone."""
        return self._views.get(model, {}).get(site_id, _UNSEEN).refuses_until_s > now_s

    def sites(self, model: str, origin: str, now_s: float, draw: float) -> tuple[str, ...]:
        """Sites to try for a request, one after the other; empty when none may be asked."""
        return order(shares(self.plan, model, origin, self._views.get(model, {}), now_s), draw)
