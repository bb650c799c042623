"""What all requests of one gateway share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sixfold.scaling.gateway.admission import Admission
from sixfold.scaling.gateway.attempts import Attempts
from sixfold.scaling.gateway.budgets import HedgeClock, RetryBudget
from sixfold.scaling.gateway.fleet import Fleet
from sixfold.scaling.gateway.geography import Geography
from sixfold.scaling.gateway.inbound import TokenIds
from sixfold.scaling.gateway.listing import ObjectLists
from sixfold.scaling.gateway.metrics import GatewayMetrics
from sixfold.scaling.gateway.owners import Owners
from sixfold.scaling.gateway.placing import UploadPlaces
from sixfold.scaling.gateway.settings import GatewaySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a gateway, made once.

    Attributes:
        settings: All of them.
        fleet: The replicas.
        geography: Where requests may go.
        attempts: Tries requests.
        budget: Counts requests and bounds their retries.
        metrics: Counted on the way.
        owners: Where objects live, and whose they are.
        places: Where files go.
        lists: Of what the servers keep.
        admission_of: The door of each model, by its name; "" is for requests that name none.
        hedge_of: When requests of each model are late.
        token_ids: Tokenizes prompts, if anything does.
        hurry: Called when a replica seems to be gone.
        clock: Monotonic seconds.
    """

    settings: GatewaySettings
    fleet: Fleet
    geography: Geography
    attempts: Attempts
    budget: RetryBudget
    metrics: GatewayMetrics
    owners: Owners
    places: UploadPlaces
    lists: ObjectLists
    admission_of: Callable[[str], Admission]
    hedge_of: Callable[[str], HedgeClock]
    token_ids: TokenIds | None
    hurry: Callable[[], None]
    clock: Callable[[], float]
