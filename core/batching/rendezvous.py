"""In-flight batching for unmodified pipelines: each runs in its own coroutine and parks where its heavy module would run.

A pipeline gets a ``call`` function in place of the module. A call parks the request; the core merges parked calls with
equal batch keys into one real forward within the step budget, splits the result and resumes. Requests join at any call and
leave when their pipeline returns, and they are scheduled like the sequences of every other model.

This file holds the mechanism only. What a call costs, which calls may merge and how, is the subclass's.
"""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from sixfold.core.batching.model import Finish, Granted, InputT, Outcome, OutputT, StepModel
from sixfold.core.errors import RequestError, StepFailed
from sixfold.core.messages import Cost, Request

CallT = TypeVar("CallT")
AnswerT = TypeVar("AnswerT")


class _Left(BaseException):
    """Raised at the call of a pipeline whose request has left; no Exception, so that no pipeline takes it for its own."""


class _Pipeline(Generic[CallT, AnswerT]):
    """What the pipeline's thread sees. It must not know its `Parked`, whose collection ends it."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.back = threading.Semaphore(0)
        self.answer: AnswerT | None = None
        self.closed = False
        self.call: CallT | None = None
        self.finish: Finish[Any] | None = None
        self.error: BaseException | None = None

    def main(self, run: Callable[[Callable[[CallT], AnswerT]], Finish[Any]]) -> None:
        """Body of the thread."""
        try:
            self.finish = run(self.park)
        except BaseException as error:  # handed to the core, which decides
            self.error = error
        self.call = None
        self.back.release()

    def park(self, call: CallT) -> AnswerT:
        """Stands in for the heavy module: waits for the core to compute the call."""
        if not self.closed:
            self.call = call
            self.back.release()
            self.go.acquire()
        if self.closed:
            raise _Left
        return self.answer  # type: ignore[return-value]  # set by resume, which alone lets this side run

    def abandon(self) -> None:
        """Lets a parked pipeline end, without waiting for it."""
        self.closed = True
        self.go.release()


class Parked(Generic[CallT, AnswerT]):
    """A pipeline in its own thread, of which exactly one side runs at a time: it, or the core.

    One that is dropped without `close`, because its request ended while it was prepared, ends when it is collected.

    Args:
        run: The pipeline; gets the function to call in place of the heavy module.
    """

    def __init__(self, run: Callable[[Callable[[CallT], AnswerT]], Finish[Any]]) -> None:
        self._pipeline: _Pipeline[CallT, AnswerT] = _Pipeline()
        self._thread = threading.Thread(target=self._pipeline.main, args=(run,), name="pipeline", daemon=True)
        self._abandon = weakref.finalize(self, self._pipeline.abandon)
        self._abandon.atexit = False
        self._thread.start()
        self._pipeline.back.acquire()

    @property
    def call(self) -> CallT | None:
        """The call it waits for; None when it has ended."""
        return self._pipeline.call

    @property
    def finish(self) -> Finish[Any] | None:
        """What it returned."""
        return self._pipeline.finish

    @property
    def error(self) -> BaseException | None:
        """What it raised."""
        return self._pipeline.error

    @property
    def done(self) -> bool:
        """Whether the pipeline has returned or raised."""
        return self._pipeline.call is None

    def resume(self, answer: AnswerT) -> None:
        """Runs the pipeline until its next call or its end."""
        self._pipeline.answer = answer
        self._pipeline.go.release()
        self._pipeline.back.acquire()

    def close(self) -> None:
        """Ends a pipeline that is parked, by an exception at its call; returns when its thread has ended."""
        self._abandon()
        self._thread.join()


class RendezvousModel(StepModel[Parked[CallT, AnswerT], InputT, OutputT], Generic[CallT, AnswerT, InputT, OutputT]):
    """A StepModel whose sequences are running pipelines."""

    @abstractmethod
    def run_pipeline(self, request: Request[InputT], call: Callable[[CallT], AnswerT]) -> Finish[OutputT]:
        """Runs the unmodified pipeline for one request, with ``call`` in place of its heavy module. [own thread]"""

    @abstractmethod
    def call_cost(self, call: CallT) -> Cost:
        """What one call asks of a step; its batch key holds all that calls must agree on to be merged. [device]"""

    @abstractmethod
    def forward(self, calls: Sequence[CallT]) -> Sequence[AnswerT]:
        """One real forward for merged calls; one answer per call, in order. [device]"""

    def preview(self, sequence: Parked[CallT, AnswerT]) -> OutputT | None:
        """An increment after a step, such as progress; None for none. [device]"""
        return None

    def prepare(self, request: Request[InputT], piece: object) -> Sequence[Parked[CallT, AnswerT]]:
        """Starts the pipeline and runs it up to its first call: prompts are encoded here."""
        parked: Parked[CallT, AnswerT] = Parked(lambda call: self.run_pipeline(request, call))
        if isinstance(parked.error, Exception):
            raise parked.error
        return (parked,)

    def cost(self, sequence: Parked[CallT, AnswerT]) -> Cost:
        """That of its parked call; a pipeline that never calls leaves in its first step."""
        return Cost(units=1, min_units=1) if sequence.call is None else self.call_cost(sequence.call)

    def step(self, batch: Sequence[Granted[Parked[CallT, AnswerT]]]) -> Sequence[Outcome[OutputT]]:
        """Runs one forward for the parked calls, then lets each pipeline go on to its next call."""
        waiting = [granted.sequence for granted in batch if granted.sequence.call is not None]
        calls = [sequence.call for sequence in waiting if sequence.call is not None]
        answers = self.forward(calls) if calls else ()
        if len(answers) != len(calls):  # before any pipeline goes on: then the step can still be repeated
            raise ValueError(f"{type(self).__name__}.forward returned {len(answers)} answers for {len(calls)} calls")
        for sequence, answer in zip(waiting, answers, strict=True):
            sequence.resume(answer)
        return [self._outcome(granted.sequence) for granted in batch]

    def _outcome(self, sequence: Parked[CallT, AnswerT]) -> Outcome[OutputT]:
        if sequence.error is not None:
            return Outcome(done=True, error=self.pipeline_error(sequence.error))
        return Outcome(output=None if sequence.done else self.preview(sequence), done=sequence.done)

    def pipeline_error(self, error: BaseException) -> RequestError:
        """The client's error for what a pipeline raised."""
        if isinstance(error, RequestError):
            return error
        failure = StepFailed(
            "The model failed on this request. The server's log has the reason under the request's id."
        )
        failure.__cause__ = error
        return failure

    def release(self, sequence: Parked[CallT, AnswerT]) -> None:
        """Ends the pipeline's thread."""
        sequence.close()

    def finish(self, request: Request[InputT], sequences: Sequence[Parked[CallT, AnswerT]]) -> Finish[OutputT]:
        """What the pipeline returned."""
        end = sequences[0].finish
        assert end is not None  # the sequence was done without an error
        return end
