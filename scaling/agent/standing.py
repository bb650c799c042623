"""What a site holds on to: the newest plan it took, and its own part of the last plan that knew it."""

from __future__ import annotations

from typing import Protocol

import msgspec

from sixfold.scaling.hub.model import Assignment, Plan


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an agent that survives it.

    Attributes:
        plan: The plan with the highest epoch that the site took.
        assignments: The site's part of the last plan that counted it in.
        incarnation: Rises with each start of the agent.
    """

    plan: Plan = Plan()
    assignments: tuple[Assignment, ...] = ()
    incarnation: int = 0


def take_plan(standing: Standing, plan: Plan, site_id: str) -> Standing | None:
    """The state after a plan arrived; None if it is not newer than the one that holds.

    Plans come late, twice and in any order, from candidates that lead no more; the epoch alone decides.
    A plan that does not count the site in was made while the hub did not hear it: it says nothing about what runs here, and the
    replicas that serve clients stay. Region locks hold at once in any case: `Plan.allows` is asked whenever targets are computed.
    """
    if plan.epoch <= standing.plan.epoch:
        return None
    assignments = plan.at(site_id) if site_id in plan.site_ids else standing.assignments
    return msgspec.structs.replace(standing, plan=plan, assignments=assignments)


class StandingFile(Protocol):
    """Where a standing is kept over restarts."""

    def load(self) -> Standing:
        """What was saved last; an empty one at first."""
        ...

    def save(self, standing: Standing, /) -> None:
        """Keeps it, whole or not at all."""
        ...
