"""What ``GET /live`` answers: one message as JSON, or one after the other as server-sent events named ``live``."""

from __future__ import annotations

import msgspec


class SequenceJoined(msgspec.Struct, frozen=True, tag="joined", tag_field="kind", kw_only=True):
    """A sequence runs from the next `StepDone` on; may be told again.

    Attributes:
        sequence: Its number in this feed.
        request: The same for all sequences of a request; rises with arrival at the replica.
        request_id: Its ``x-request-id``, if the key that watches sent it.
        units: The whole work of the request as guessed at its admission, in the model's unit.
        waited_s: From ready to run until the request's first step.
    """

    sequence: int
    request: int
    request_id: str | None
    units: int
    waited_s: float


class StepDone(msgspec.Struct, frozen=True, tag="stepped", tag_field="kind", kw_only=True):
    """A step.

    Attributes:
        number: Of the replica's steps since it was loaded.
        at_s: When it ended, by the clock of `LiveMessage.at_s`.
        seconds: How long the device was busy with it.
        units: Work done.
        budget_units: Work that it could have done; null where the model has a budget of its own.
        num_waiting: Requests that no step has served yet.
        rows: Pairs of sequence and granted units.
    """

    number: int
    at_s: float
    seconds: float
    units: int
    budget_units: int | None
    num_waiting: int
    rows: tuple[tuple[int, int], ...]


class SequenceLeft(msgspec.Struct, frozen=True, tag="left", tag_field="kind", kw_only=True):
    """A sequence runs no more; ``reason`` is ``done``, ``preempted`` or the code of the error that ended its request."""

    sequence: int
    step: int
    reason: str


LiveNews = SequenceJoined | StepDone | SequenceLeft


class LiveReplica(msgspec.Struct, frozen=True, kw_only=True):
    """One replica: its figures now, and what its batch did since the last message.

    Attributes:
        replica: Its place among the model's replicas; ``engine`` in ``/metrics``.
        num_running: Sequences in the batch.
        num_waiting: Requests before their first step.
        queued_units: Admitted work that is not done.
        units_per_s: Work done per second while there was some.
        metrics: Values that ``/metrics`` has as well, without histograms.
        events: In order; empty in an answer as JSON, and for replicas that cannot be watched.
        num_dropped: Events that came too fast to be told.
        watch: Another number is another process: its sequences are numbered anew.
    """

    replica: int
    num_running: int
    num_waiting: int
    queued_units: int
    units_per_s: float
    metrics: dict[str, float]
    events: tuple[LiveNews, ...]
    num_dropped: int
    watch: int


class LiveModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model that the key may use."""

    name: str
    modality: str | None
    state: str
    num_in_flight: int
    replicas: tuple[LiveReplica, ...]


class LiveHolding(msgspec.Struct, frozen=True, kw_only=True):
    """Who has how much of a device; ``rests`` if it has given it away until it is used again."""

    holder: str
    num_bytes: int
    rests: bool


class LiveDevice(msgspec.Struct, frozen=True, kw_only=True):
    """The account of one device's memory."""

    device: str
    capacity_bytes: int
    free_bytes: int
    holdings: tuple[LiveHolding, ...]


class LiveMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The server at one moment; ``at_s`` is monotonic."""

    at_s: float
    models: tuple[LiveModel, ...]
    memory: tuple[LiveDevice, ...]
