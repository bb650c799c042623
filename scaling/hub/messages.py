"""What agents and the hub say to each other; JSON on the wire."""

from __future__ import annotations

import msgspec

from sixfold.scaling.hub.model import Capacity, Plan, Running


class SiteLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Demand that a site's gateways see, in replicas that it keeps busy at their target utilization."""

    model: str
    origin: str
    num_replicas: float


class SiteReport(msgspec.Struct, frozen=True, kw_only=True):
    """A site's state, sent to every candidate of the hub.

    Attributes:
        site_id: The sender.
        incarnation: Rises with each start of the agent.
        sequence: Rises within an incarnation; what arrives out of order is dropped.
        epoch: Of the newest plan that the site has.
        capacities: Accelerators that may be used.
        running: Replicas that hold accelerators.
        loads: Demand.
    """

    site_id: str
    incarnation: int
    sequence: int
    epoch: int = 0
    capacities: tuple[Capacity, ...] = ()
    running: tuple[Running, ...] = ()
    loads: tuple[SiteLoad, ...] = ()

    def newer_than(self, other: SiteReport | None) -> bool:
        """Whether it was sent later."""
        return other is None or (self.incarnation, self.sequence) > (other.incarnation, other.sequence)


class ReportAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The newest plan that this candidate knows, if the reporting site has an older one."""

    plan: Plan | None = None
