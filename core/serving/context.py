"""What all requests of a server share, and what is known of one request before its route runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic

from sixfold.core.serving.directory import Directory
from sixfold.core.serving.drain import Drain
from sixfold.core.serving.fetch import Fetcher
from sixfold.core.serving.keys import KeyRing, Principal
from sixfold.core.serving.metrics import ServingMetrics
from sixfold.core.serving.replica_choice import ReplicaChooser
from sixfold.core.serving.settings import ServerSettings
from sixfold.core.serving.urgent import UrgentWork

SCOPE_KEY = "sixfold"
"""Where the gate leaves the `Admitted` of a request in its ASGI scope."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingContext:
    """The parts of one server.

    Attributes:
        settings: What the operator set.
        directory: The models.
        metrics: Where everything is counted.
        chooser: Hands requests to replicas.
        keys: Who may come in.
        drain: Who is running.
        fetcher: Gets what requests name by URL.
        urgent: What runs above the batch class.
        request_numbers: Makes ids unique at the replicas, whatever ids clients send.
    """

    settings: ServerSettings
    directory: Directory
    metrics: ServingMetrics
    chooser: ReplicaChooser
    keys: KeyRing
    drain: Drain
    fetcher: Fetcher
    urgent: UrgentWork
    request_numbers: Iterator[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An HTTP request that passed the gate.

    Attributes:
        request_id: What the client sees as ``x-request-id``.
        principal: Whose key it carries.
        arrived_s: ``time.monotonic()`` at which its headers were there.
    """

    request_id: str
    principal: Principal
    arrived_s: float


def new_context(
    settings: ServerSettings, directory: Directory, *, clock: Callable[[], float] = monotonic
) -> ServingContext:
    """The context of a new server.

    Args:
        settings: What the operator set.
        directory: The models.
        clock: Monotonic seconds, for the limits of keys.
    """
    return ServingContext(
        settings=settings,
        directory=directory,
        metrics=ServingMetrics(),
        chooser=ReplicaChooser(),
        keys=KeyRing(settings.api_keys, clock),
        drain=Drain(),
        fetcher=Fetcher(settings.fetch_urls, timeout_s=settings.fetch_timeout_s),
        urgent=UrgentWork(),
        request_numbers=itertools.count(1),
    )
