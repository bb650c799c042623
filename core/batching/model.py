"""The contracts between the batch manager and a model: `StepModel` for models that the core steps, `EngineModel` for
libraries with a loop of their own.

Threads. One *device thread* per replica owns the scheduler and calls everything below that is marked [device]. *Pool*
threads call what is marked [pool]; these may run at the same time as a step. [loop] is the asyncio thread; what runs
there must take microseconds.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import msgspec
from pydantic import BaseModel

from sixfold.core.batching.step_share import MeasuredStep
from sixfold.core.decisions import DecisionLog
from sixfold.core.errors import RequestError, StepFailed
from sixfold.core.messages import Cost, Request, Usage

DORMANT = "dormant"
"""The value of `ReplicaModel.stats` that is 1 while a model has given its GPU's memory away until the next request comes. A
family whose models do so declares it as a metric; the account of the memory reads it."""

SequenceT = TypeVar("SequenceT")
PreparedT = TypeVar("PreparedT")
InputT = TypeVar("InputT", bound=msgspec.Struct)
OutputT = TypeVar("OutputT", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a loaded model tells about itself; shown by ``/v1/models`` and read by HTTP schemas.

    Attributes:
        max_model_len: Longest input (plus output, for generators) of one sequence in units; None if unbounded.
        parameters: Number of weights.
        memory_bytes: Bytes held by weights and fixed buffers on the device.
        details: Facts that the family's own API layer needs, JSON scalars only.
    """

    max_model_len: int | None = None
    parameters: int | None = None
    memory_bytes: int | None = None
    details: Mapping[str, str | int | float | bool] = dataclasses.field(
        default_factory=dict[str, str | int | float | bool]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish(Generic[OutputT]):
    """The end of a request: its result, its counted usage and why it ended (a Prometheus label)."""

    result: OutputT
    usage: Usage
    finish_reason: str = "stop"


class Granted(NamedTuple, Generic[SequenceT]):
    """A sequence's place in the next step: it may do up to ``units`` of the work it asked for.

    A tuple, as `Outcome`: one is made for each sequence at each step, and tuples are made in a third of the time.
    """

    sequence: SequenceT
    units: int


class Outcome(NamedTuple, Generic[OutputT]):
    """What one step did for one sequence.

    Attributes:
        output: An increment for the client, or None when there is nothing to send yet.
        done: The sequence has left the batch; it will be released and never stepped again.
        error: The sequence alone failed in an ordinary way (its whole request fails with it); implies ``done``.
    """

    output: OutputT | None = None
    done: bool = False
    error: RequestError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRange:
    """How much work one step of a model may do, in units; the budget controller moves inside it.

    Attributes:
        min_units: A smaller budget would waste the device.
        initial_units: The budget before anything was measured.
        max_units: A larger one does not fit the memory of activations.
        whole_jobs: Sequences are jobs of many equal, indivisible steps of which a client wants the last (pictures,
            clips). How many share a step is then learned from the times of steps, so that company delays nobody, and who
            came first goes first: see `StepShare` and `JobScheduler`.
    """

    min_units: int = 16
    initial_units: int = 1024
    max_units: int = 1 << 20
    whole_jobs: bool = False


class ReplicaModel(ABC, Generic[InputT, OutputT]):
    """What StepModel and EngineModel have in common."""

    @property
    def info(self) -> ModelInfo:
        """Facts about the loaded model; none, unless a subclass tells some. [any thread]"""
        return ModelInfo()

    @abstractmethod
    def estimate_units(self, request: Request[InputT]) -> int:
        """Guesses the request's whole work in units from its size, for admission. [loop]

        Must not tokenize or decode; an estimate within a factor of two is good. At least 1.
        """

    def adjust(self, options: BaseModel) -> None:
        """Takes over new options while requests run; called where `Family.adjusts` said that it can.

        Called by a thread of its own, one call at a time, beside steps and the pool. It may read files. If it raises,
        everything must be as before.

        Raises:
            ConfigError: It can't; says why.
        """
        raise NotImplementedError(f"{type(self).__name__} is told new options and must be able to take them over")

    def warm_up(self) -> None:
        """Runs the shapes that live traffic will see, before the replica says that it is ready. [device]"""
        return

    def stats(self) -> Mapping[str, float]:
        """Current values of the metrics that the family declared (`Family.metrics`). [device, first before any step]"""
        return {}

    def tell(self, decisions: DecisionLog) -> None:
        """Takes the log for what the model changes about itself while it runs. Called once, before the first step."""
        return

    def close(self) -> None:
        """Gives everything back. Called once, after the last step. [device]"""
        return


class PendingStep(ABC, Generic[OutputT]):
    """A step that the device computes; see `StepModel.begin`. [device]"""

    @property
    def may_be_followed(self) -> bool:
        """Whether the next step may begin before this one is finished. If not, it is finished at once."""
        return True

    @abstractmethod
    def finish(self) -> Sequence[Outcome[OutputT]]:
        """Waits for the device and returns one outcome for each granted sequence, in order. Called once, in the order in
        which steps began.

        The outcome of a sequence that was preempted or released meanwhile is dropped. When this raises, the sequences must
        be as if the step had been abandoned.

        Raises:
            DeviceLost: As `StepModel.step`.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Forgets the step: what it computed counts for nothing. Called instead of `finish`, of the last step that began."""


class StepModel(ReplicaModel[InputT, OutputT], Generic[SequenceT, InputT, OutputT]):
    """A model that the core runs step by step.

    A request is split into pieces, each piece is prepared in the pool into sequences, sequences join the running batch,
    and leave it when an outcome says ``done``, or when they are cancelled, expire or fail.

    ``SequenceT`` is the family's own class for the state of a sequence. Between `prepare` and `release` it has one
    owner: the device thread.
    """

    @property
    def step_range(self) -> StepRange:
        """Bounds of the step budget. [device, once]"""
        return StepRange()

    def measured_steps(self) -> Sequence[MeasuredStep]:
        """Steps that `warm_up` has timed, from which the budget learns before the first request. [device, once]"""
        return ()

    def interrupt(self) -> None:
        """Asks a step that waits for something outside to return soon; called when requests arrive or leave. [any thread]

        Only models whose `step` can block on anything but computing need it.
        """
        return

    def split(self, request: Request[InputT]) -> Sequence[object]:
        """Cuts a request into pieces that the pool may prepare apart; cheap slicing only. [loop]

        The order of the pieces is the order of the sequences. Default: the whole input is one piece.
        """
        return (request.input,)

    @abstractmethod
    def prepare(self, request: Request[InputT], piece: object) -> Sequence[SequenceT]:
        """Turns one piece into sequences: tokenize, decode media, render templates. [pool]

        If the request ends meanwhile, the sequences may be dropped without `release`: what they hold by then must be
        given back when they are collected.

        Raises:
            RequestError: The input is bad; the whole request fails with this error.
        """

    def attach(self, wake: Callable[[], None]) -> None:
        """Gives the model a call that makes the loop turn, for when a sequence comes back. Called once, before any step.

        Args:
            wake: Cheap, from any thread; see `cost` and `collect`.
        """
        return

    @abstractmethod
    def cost(self, sequence: SequenceT) -> Cost | None:
        """What the sequence asks of the next step. Called before each step. [device]

        None while it works elsewhere, on something that needs no step: it keeps its place in the running batch, asks
        nothing and holds up nobody. The model calls `wake` when that changes. A sequence that was never stepped is not
        elsewhere.
        """

    def collect(self) -> Sequence[tuple[SequenceT, Outcome[OutputT]]]:
        """Takes what sequences did outside of steps since the last call, in order: increments, and the end of one that
        was elsewhere. Called before each selection and after each step. [device]

        Outcomes of sequences that have left meanwhile are dropped.
        """
        return ()

    @abstractmethod
    def step(self, batch: Sequence[Granted[SequenceT]]) -> Sequence[Outcome[OutputT]]:
        """Computes one step for the batch and returns one outcome per granted sequence, in order. [device]

        Until it returns, a step must not change what a repetition depends on: when it raises, the core runs the halves
        of the batch again to find the culprit.

        Raises:
            DeviceLost: The device or process can't go on; every sequence fails and the replica is replaced.
        """

    @property
    def begins_steps(self) -> bool:
        """Whether steps are run by `begin`, one ahead of their outcomes, instead of by `step`. [device, once]

        For models on devices that compute beside the host: while the device computes a step, the core hands out what the one
        before made. `step` is still called, to find who makes a step fail.
        """
        return False

    def begin(self, batch: Sequence[Granted[SequenceT]]) -> PendingStep[OutputT]:
        """Starts to compute one step for the batch and returns without waiting for the device. [device]

        At most one step is unfinished when the next begins. From here on `cost` and `reserve` speak of the step after: a
        sequence whose next step depends on what this one brings has the cost None until it is finished. A sequence that
        ends with the step before is in this one for nothing; its outcome is dropped. When this raises, nothing has begun.

        Raises:
            DeviceLost: As `step`.
        """
        raise NotImplementedError(f"{type(self).__name__} has begins_steps and must be able to begin one")

    def reserve(self, sequence: SequenceT, units: int) -> int:
        """Takes the memory that ``units`` more work needs; returns the units there is memory for. [device]

        A return below the sequence's ``min_units`` means that it can't run now, and takes nothing: the core preempts
        others or waits.
        Must be safe to repeat without a step in between.
        """
        return units

    def preempt(self, sequence: SequenceT) -> None:
        """Takes the sequence's memory away; it will run again later from what it has emitted. [device]"""
        raise NotImplementedError(f"{type(self).__name__} reserves memory and must be able to preempt")

    def release(self, sequence: SequenceT) -> None:
        """Gives back all that the sequence holds. Called exactly once for each sequence that reached the batch. [device]

        An exception loses the device: the ledger of what is held could not be trusted any more.
        """
        return

    @abstractmethod
    def finish(self, request: Request[InputT], sequences: Sequence[SequenceT]) -> Finish[OutputT]:
        """Makes the request's result from all its finished sequences, in order, after they were released. [pool]"""


class EngineModel(ReplicaModel[InputT, OutputT], Generic[PreparedT, InputT, OutputT]):
    """A library with an in-flight loop of its own (vLLM). The core admits, orders, bounds, cancels and measures.

    ``PreparedT`` is what `prepare` makes of a request for `run` and `generate`, such as token ids.
    """

    def attach(self, wake: Callable[[], None]) -> None:
        """Gives the engine a call that makes the core read `stats` again. Called once, before any request.

        Args:
            wake: Cheap, from any thread.
        """
        return

    @property
    def max_running_units(self) -> int:
        """Work in units that the engine may hold at once; more waits in the core, in fair order. [device, once]"""
        return 1 << 20

    @property
    def max_running_requests(self) -> int:
        """Requests that the engine may hold at once. [device, once]"""
        return 1 << 16

    @abstractmethod
    def prepare(self, request: Request[InputT]) -> PreparedT:
        """Does what must not hold up the engine's loop: render, tokenize, check. [pool]

        Raises:
            RequestError: The input is bad.
        """

    def generate(self, request: Request[InputT], prepared: PreparedT) -> AsyncIterator[OutputT | Finish[OutputT]]:
        """Runs one request; yields increments and, last, a Finish, which is handed out when the iterator ends. Closing it aborts
        within one step.

        [the engine's loop: an event loop in a thread of its own, where every request of the engine runs]

        Raises:
            RequestError: The input is bad.
            DeviceLost: The engine can't go on.
        """
        raise NotImplementedError(f"{type(self).__name__} needs `generate` or `run`")

    async def run(
        self, request: Request[InputT], prepared: PreparedT, tell: Callable[[OutputT], None]
    ) -> Finish[OutputT]:
        """Runs one request. Cancelling it aborts within one step. [the engine's loop]

        This one iterates over `generate`. An engine that makes thousands of increments a second and can call back where it
        makes them overrides this instead: then no task wakes for each of them.

        Args:
            request: To run.
            prepared: What `prepare` made of it.
            tell: Takes each increment; on the engine's loop, before the return.

        Raises:
            RequestError: The input is bad.
            DeviceLost: The engine can't go on.
        """
        end: Finish[OutputT] | None = None
        async for output in self.generate(request, prepared):
            if isinstance(output, Finish):
                end = output
            else:
                tell(output)
        if end is None:
            raise StepFailed("The engine ended the request without a result.")
        return end


class DeviceLost(Exception):
    """The accelerator or engine can't go on; the worker process ends and is replaced."""
