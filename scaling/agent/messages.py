"""What gateways and a site's agent say to each other; JSON on the wire. Whoever asks also tells, as agents do with the hub."""

from __future__ import annotations

import msgspec

from sixfold.scaling.hub.model import Plan


class GatewayLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One model's requests of one origin at one gateway."""

    model: str
    origin: str
    num_in_flight: float


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway has in flight; it replaces the gateway's last report to the same agent.

    Attributes:
        gateway_id: The sender.
        epoch: Of the newest plan that the gateway has.
        demand: All requests of its clients, wherever they are served; told to the gateway's home site alone, or they would be
            counted twice.
        routed: Requests that it sent to the receiving site.
    """

    gateway_id: str
    epoch: int = 0
    demand: tuple[GatewayLoad, ...] = ()
    routed: tuple[GatewayLoad, ...] = ()


class ReadyReplica(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that takes requests, and where gateways reach it."""

    model: str
    url: str


class SiteModel(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one model a site bears, and has.

    Attributes:
        model: The model.
        num_ready: Replicas that take requests.
        concurrency: Requests that one of them has in flight at its target utilization.
        num_in_flight: Requests that gateways say they have here.
    """

    model: str
    num_ready: int
    concurrency: float
    num_in_flight: float


class LoadAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A site's answer to a `LoadReport`.

    Attributes:
        site_id: The site.
        region: Where it is.
        plan: The plan that holds here, if it is newer than the gateway's.
        replicas: All that are ready here.
        models: What is known of each model.
    """

    site_id: str
    region: str
    plan: Plan | None = None
    replicas: tuple[ReadyReplica, ...] = ()
    models: tuple[SiteModel, ...] = ()
