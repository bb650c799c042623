"""What all requests of a server share, and what is known of one request before its route runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from sixfold.core.serving.directory import Directory
from sixfold.core.serving.drain import Drain
from sixfold.core.serving.fetch import Fetcher
from sixfold.core.serving.keys import KeyRing, Principal
from sixfold.core.serving.metrics import ServingMetrics
from sixfold.core.serving.replica_choice import ReplicaChooser
from sixfold.core.serving.request_record import RequestRecord
from sixfold.core.serving.settings import ServerSettings
from sixfold.core.serving.urgent import UrgentWork

if TYPE_CHECKING:
    from sixfold.core.telemetry.tracing import Tracing

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
        tracing: Where traces go; None for nowhere.
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
    tracing: Tracing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An HTTP request that passed the gate.

    Attributes:
        request_id: What the client sees as ``x-request-id``.
        principal: Whose key it carries.
        arrived_s: ``time.monotonic()`` at which its headers were there.
        record: What becomes of it, where that is traced or logged.
    """

    request_id: str
    principal: Principal
    arrived_s: float
    record: RequestRecord | None = None


def new_context(
    settings: ServerSettings,
    directory: Directory,
    *,
    clock: Callable[[], float] = monotonic,
    tracing: Tracing | None = None,
) -> ServingContext:
    """The context of a new server.

    Args:
        settings: What the operator set.
        directory: The models.
        clock: Monotonic seconds, for the limits of keys.
        tracing: Where traces go.
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
        tracing=tracing,
    )
