"""In-flight batching for unmodified pipelines: each runs in its own coroutine and parks where its heavy module would run.

A pipeline gets a `PipelineSide`, whose ``call`` stands in for the module. A call parks the request; the core merges parked
calls with equal batch keys into one real forward within the step budget, splits the result and resumes. Requests join at
any call and leave when their pipeline returns, and they are scheduled like the sequences of every other model.

Work that must not hold up the steps (encoding, decoding) is done in the pipeline's own thread after ``leave``: the steps
of the others go on, and the pipeline is taken back at its next call or its end.

This file holds the mechanism only. What a call costs, which calls may merge and how, is the subclass's.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic

from sixfold.core.batching.model import Finish, Granted, InputT, Outcome, OutputT, StepModel
from sixfold.core.batching.parked import AnswerT, CallT, Parked, PipelineSide
from sixfold.core.batching.pipeline_threads import PipelineThreads
from sixfold.core.errors import RequestError, StepFailed
from sixfold.core.messages import Cost, Request


class RendezvousModel(StepModel[Parked[CallT, AnswerT], InputT, OutputT], Generic[CallT, AnswerT, InputT, OutputT]):
    """A StepModel whose sequences are running pipelines.

    Args:
        max_kept_threads: See `PipelineThreads`.
    """

    def __init__(self, max_kept_threads: int = 0) -> None:
        self._news: deque[weakref.ref[Parked[CallT, AnswerT]]] = deque()
        self._wake: Callable[[], None] = lambda: None
        self._threads = PipelineThreads(max_kept_threads)

    @abstractmethod
    def run_pipeline(
        self, request: Request[InputT], piece: object, side: PipelineSide[CallT, AnswerT]
    ) -> Finish[OutputT]:
        """Runs the unmodified pipeline for one piece, with ``side.call`` in place of its heavy module. [own thread]"""

    def begin_thread(self) -> None:
        """Called before each pipeline in its thread, which may have run others before. [own thread]"""

    @abstractmethod
    def call_cost(self, call: CallT) -> Cost:
        """What one call asks of a step; its batch key holds all that calls must agree on to be merged. [device]"""

    @abstractmethod
    def forward(self, calls: Sequence[CallT]) -> Sequence[AnswerT]:
        """One real forward for merged calls; one answer per call, in order. [device]"""

    def preview(self, sequence: Parked[CallT, AnswerT]) -> OutputT | None:
        """An increment after a step, such as progress; None for none. [device]"""
        return None

    def attach(self, wake: Callable[[], None]) -> None:
        """See `StepModel`."""
        self._wake = wake

    def prepare(self, request: Request[InputT], piece: object) -> Sequence[Parked[CallT, AnswerT]]:
        """Starts the pipeline and runs it up to its first call: prompts are encoded here."""

        def run(side: PipelineSide[CallT, AnswerT]) -> Finish[OutputT]:
            self.begin_thread()
            return self.run_pipeline(request, piece, side)

        parked: Parked[CallT, AnswerT] = Parked(run, self._threads, self._on_news)
        if isinstance(parked.error, Exception):
            raise parked.error
        return (parked,)

    def cost(self, sequence: Parked[CallT, AnswerT]) -> Cost | None:
        """That of its parked call; a pipeline that never calls leaves in its first step, one that has left costs nothing."""
        call = sequence.call
        if call is not None:
            return self.call_cost(call)
        # One that left and ended is collected in the next turn.
        return None if sequence.left else Cost(units=1, min_units=1)

    def step(self, batch: Sequence[Granted[Parked[CallT, AnswerT]]]) -> Sequence[Outcome[OutputT]]:
        """Runs one forward for the parked calls, then lets each pipeline go on until it calls again, leaves or ends."""
        waiting = [granted.sequence for granted in batch if granted.sequence.call is not None]
        calls = [sequence.call for sequence in waiting if sequence.call is not None]
        answers = self.forward(calls) if calls else ()
        if len(answers) != len(calls):  # before any pipeline goes on: then the step can still be repeated
            raise ValueError(f"{type(self).__name__}.forward returned {len(answers)} answers for {len(calls)} calls")
        for sequence, answer in zip(waiting, answers, strict=True):
            sequence.resume(answer)
        return [self._outcome(granted.sequence) for granted in batch]

    def collect(self) -> Sequence[tuple[Parked[CallT, AnswerT], Outcome[OutputT]]]:
        """The increments that pipelines sent, and the ends of those that had left."""
        found: list[tuple[Parked[CallT, AnswerT], Outcome[OutputT]]] = []
        while self._news:
            sequence = self._news.popleft()()
            if sequence is None:
                continue
            ended = sequence.take_end()  # first: what is sent before the end is then certainly there
            found.extend((sequence, Outcome(output=output)) for output in sequence.take_outputs())
            if ended:
                found.append((sequence, self._end(sequence)))
        return found

    def _on_news(self, sequence: weakref.ref[Parked[CallT, AnswerT]]) -> None:
        self._news.append(sequence)
        self._wake()

    def _outcome(self, sequence: Parked[CallT, AnswerT]) -> Outcome[OutputT]:
        if sequence.left:
            return Outcome()
        return self._end(sequence) if sequence.done else Outcome(output=self.preview(sequence))

    def _end(self, sequence: Parked[CallT, AnswerT]) -> Outcome[OutputT]:
        error = sequence.error
        return Outcome(done=True, error=None if error is None else self.pipeline_error(error))

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
        """Ends the pipeline."""
        sequence.close()

    def finish(self, request: Request[InputT], sequences: Sequence[Parked[CallT, AnswerT]]) -> Finish[OutputT]:
        """What the pipeline of the only piece returned."""
        end = sequences[0].finish
        assert end is not None  # the sequence was done without an error
        return end
