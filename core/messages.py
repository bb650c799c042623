"""What crosses queues, processes and hooks: immutable, typed, and free of any modality's words.

A :class:`Request` carries a plugin's own input (a ``msgspec.Struct``) through the core; the answer is a stream of
events: any number of :class:`Increment`, then exactly one :class:`Finished` or :class:`Failed`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from sixfold.core.errors import RequestError

InputT = TypeVar("InputT", bound=msgspec.Struct)
OutputT = TypeVar("OutputT", bound=msgspec.Struct)


ANONYMOUS = "anonymous"
"""The tenant of every request to a server without keys."""


class Priority(enum.IntEnum):
    """Priority classes, shared by weight, never by strict order: a lower class slows down, it does not starve."""

    BATCH = 0
    STANDARD = 1
    INTERACTIVE = 2

    @property
    def weight(self) -> float:
        """Share of the step budget relative to the other classes."""
        return (1.0, 4.0, 16.0)[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[InputT]):
    """What a client asked of one model.

    Attributes:
        request_id: Unique while the request lives; sent to the client as ``x-request-id``.
        input: The plugin's input struct, already validated by its HTTP schema.
        tenant: Identity of the API key, the unit of fairness.
        weight: The tenant's share against other tenants of the same priority.
        priority: The priority class.
        arrived_s: ``time.monotonic()`` of this process at arrival.
        deadline_s: ``time.monotonic()`` at which the request fails with DeadlineExceeded; None for never.
        trace_id: Of the trace that wants to know how its replica spends its time (32 hexadecimal digits); None for none.
    """

    request_id: str
    input: InputT
    tenant: str = ANONYMOUS
    weight: float = 1.0
    priority: Priority = Priority.STANDARD
    arrived_s: float
    deadline_s: float | None = None
    trace_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a sequence asks of the next step.

    Attributes:
        units: Work it can use in the next step, in the model's unit (tokens, latent tokens, frames); at least 1.
        min_units: The least work that makes progress. Equal to ``units`` for indivisible work; smaller for work that
            can be cut, such as a prompt prefilled in chunks.
        batch_key: Only sequences with equal keys share a step (shapes, adapters); None shares with every other None.
    """

    units: int
    min_units: int
    batch_key: object = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Counted work of a finished request, in the family's own counters, e.g. ``{"prompt_tokens": 12}``."""

    counts: dict[str, int] = {}


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a finished request spent in each stage of its replica.

    Attributes:
        prepare_s: From arrival at the replica until its first sequence was ready for a step.
        queue_s: From that moment until the first step that served it began.
        inference_s: From the begin of its first step to the end of its last.
        num_steps: Steps that served any of its sequences.
        max_batch_sequences: The largest number of sequences in one of these steps, its own included.
        num_preemptions: How often one of its sequences lost its memory and had to wait again.
    """

    prepare_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    num_steps: int = 0
    max_batch_sequences: int = 0
    num_preemptions: int = 0


class StepGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A step that served a traced request, or several that followed each other.

    Attributes:
        began_s: Seconds after the request's arrival at its replica.
        ended_s: The same, of the last step.
        num_steps: How many they are.
        units: Work that they did, for all their sequences together.
        max_batch_sequences: Sequences in the largest of them.
    """

    began_s: float
    ended_s: float
    num_steps: int = 1
    units: int
    max_batch_sequences: int


class ReplicaTrace(msgspec.Struct, frozen=True, kw_only=True):
    """How a replica spent its time on a traced request: seconds after its arrival there, None for what never came.

    Attributes:
        process_id: Of the replica.
        ready_s: The first sequence was ready for a step.
        first_step_s: The first step began.
        first_output_s: The first increment was there.
        last_step_s: The last step had ended.
        steps: All steps, at most 32 groups.
        num_preemptions: How often one of its sequences lost its memory.
    """

    process_id: int
    ready_s: float | None = None
    first_step_s: float | None = None
    first_output_s: float | None = None
    last_step_s: float | None = None
    steps: tuple[StepGroup, ...] = ()
    num_preemptions: int = 0


class Increment(msgspec.Struct, Generic[OutputT], frozen=True, kw_only=True):
    """A part of the answer that is ready: some tokens, a segment, PCM, a preview."""

    request_id: str
    output: OutputT


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Generic[OutputT]):
    """The last event of a request that succeeded; ``result`` is what the plugin's ``finish`` returned.

    ``trace`` is there if the request was traced.
    """

    request_id: str
    result: OutputT
    usage: Usage = field(default_factory=Usage)
    timing: Timing = field(default_factory=Timing)
    finish_reason: str = "stop"
    trace: ReplicaTrace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The last event of a request that did not succeed; ``trace`` may be there if it was traced."""

    request_id: str
    error: RequestError
    trace: ReplicaTrace | None = None


Event = Increment[msgspec.Struct] | Finished[msgspec.Struct] | Failed
