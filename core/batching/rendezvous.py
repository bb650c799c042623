"""In-flight batching for unmodified pipelines: each runs in its own coroutine and parks where its heavy module would run.

A pipeline gets a `PipelineSide`, whose ``call`` stands in for the module. A call parks the request; the core merges parked
calls with equal batch keys into one real forward within the step budget, splits the result and resumes. Requests join at
any call and leave when their pipeline returns, and they are scheduled like the sequences of every other model.

Work that must not hold up the steps (encoding, decoding) is done in the pipeline's own thread after ``leave``: the steps
of the others go on, and the pipeline is taken back at its next call or its end.

This file holds the mechanism only. What a call costs, which calls may merge and how, is the subclass's.
"""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from sixfold.core.batching.model import Finish, Granted, InputT, Outcome, OutputT, StepModel
from sixfold.core.errors import RequestError, StepFailed
from sixfold.core.messages import Cost, Request

CallT = TypeVar("CallT")
AnswerT = TypeVar("AnswerT")


class PipelineLeft(BaseException):
    """Raised in a pipeline whose request has left; no Exception, so that no pipeline takes it for its own."""


class PipelineSide(Generic[CallT, AnswerT]):
    """What a pipeline's thread sees of the rendezvous. It must not know its `Parked`, whose collection ends it.

    Of the attributes, ``state_lock`` guards those below it; the core reads them through `Parked`.
    """

    def __init__(self) -> None:
        self.on_news: Callable[[], None] = lambda: None
        self.outputs: deque[Any] = deque()
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._answer: AnswerT | None = None
        self._may_leave = False
        self.state_lock = threading.Lock()
        self.closed = False
        self.ended = False
        self.away = False
        self.left = False  # since the last answer
        self.parked_call: CallT | None = None
        self.finish: Finish[Any] | None = None
        self.error: BaseException | None = None

    # The pipeline's thread.

    def call(self, call: CallT) -> AnswerT:
        """Stands in for the heavy module: waits for the core to compute the call.

        Raises:
            PipelineLeft: The request has ended.
        """
        self._come_back(call)
        self._go.acquire()
        self.check()
        return self._answer  # type: ignore[return-value]  # set by answer(), which alone lets this side run

    def leave(self) -> None:
        """Lets the core go on without waiting for this pipeline's next call; before the first call it does so anyway.

        Raises:
            PipelineLeft: The request has ended.
        """
        self.check()
        if self._may_leave and not self.away:
            with self.state_lock:
                self.parked_call = None
                self.away = self.left = True
            self._back.release()

    def check(self) -> None:
        """Ends the pipeline if its request has ended.

        Raises:
            PipelineLeft: It has.
        """
        if self.closed:
            raise PipelineLeft

    def emit(self, output: Any) -> None:
        """Sends an increment to the client, in order with the others. [any thread]"""
        self.outputs.append(output)
        self.on_news()

    def main(self, run: Callable[[PipelineSide[CallT, AnswerT]], Finish[Any]]) -> None:
        """Body of the thread."""
        try:
            self.finish = run(self)
        except BaseException as error:  # handed to the core, which decides
            self.error = error
        self._come_back(None)

    def _come_back(self, call: CallT | None) -> None:
        with self.state_lock:
            if self.closed and call is not None:
                raise PipelineLeft
            was_away, self.away = self.away, False
            self.parked_call = call
            self.ended = call is None
        if was_away:
            self.on_news()
        else:
            self._back.release()

    # The core.

    def wait(self) -> None:
        """Returns when the pipeline has parked, left or ended."""
        self._back.acquire()

    def answer(self, answer: AnswerT) -> None:
        """Lets a parked pipeline go on."""
        with self.state_lock:
            self._answer = answer
            self._may_leave = True
            self.left = False
        self._go.release()

    def abandon(self) -> None:
        """Lets the pipeline end at its call, or at its next one, without waiting for it."""
        with self.state_lock:
            self.closed = True
        self._go.release()


class Parked(Generic[CallT, AnswerT]):
    """A pipeline in its own thread, of which exactly one side runs at a time, it or the core, until it leaves.

    One that is dropped without `close`, because its request ended while it was prepared, ends when it is collected.

    Args:
        run: The pipeline.
        on_news: Called, from any thread, when there are outputs or a pipeline that had left came back.
    """

    def __init__(
        self,
        run: Callable[[PipelineSide[CallT, AnswerT]], Finish[Any]],
        on_news: Callable[[weakref.ref[Parked[CallT, AnswerT]]], None] = lambda _parked: None,
    ) -> None:
        self._side: PipelineSide[CallT, AnswerT] = PipelineSide()
        me: weakref.ref[Parked[CallT, AnswerT]] = weakref.ref(self)
        self._side.on_news = lambda: on_news(me)
        self._reported = False
        self._thread = threading.Thread(target=self._side.main, args=(run,), name="pipeline", daemon=True)
        self._abandon = weakref.finalize(self, self._side.abandon)
        self._abandon.atexit = False
        self._thread.start()
        self._side.wait()

    @property
    def call(self) -> CallT | None:
        """The call it waits for; None when it has left or ended."""
        return self._side.parked_call

    @property
    def finish(self) -> Finish[Any] | None:
        """What it returned."""
        return self._side.finish

    @property
    def error(self) -> BaseException | None:
        """What it raised."""
        return self._side.error

    @property
    def away(self) -> bool:
        """Whether it computes by itself and the core must not wait for it."""
        return self._side.away

    @property
    def left(self) -> bool:
        """Whether it has left since it was last resumed; its end is then told by `take_end`."""
        return self._side.left

    @property
    def done(self) -> bool:
        """Whether the pipeline has returned or raised."""
        return self._side.ended

    def resume(self, answer: AnswerT) -> None:
        """Runs the pipeline until it calls again, leaves or ends."""
        self._side.answer(answer)
        self._side.wait()

    def take_outputs(self) -> list[Any]:
        """The increments since the last time."""
        outputs = self._side.outputs
        return [outputs.popleft() for _ in range(len(outputs))]

    def take_end(self) -> bool:
        """True once, when a pipeline that had left has ended."""
        ended = self.left and self.done and not self._reported
        self._reported = self._reported or ended
        return ended

    def close(self) -> None:
        """Ends a pipeline by an exception at its call; returns when its thread has ended.

        One that has left is not waited for: it ends when it notices.
        """
        away = self.away
        self._abandon()
        if not away:
            self._thread.join()


class RendezvousModel(StepModel[Parked[CallT, AnswerT], InputT, OutputT], Generic[CallT, AnswerT, InputT, OutputT]):
    """A StepModel whose sequences are running pipelines."""

    def __init__(self) -> None:
        self._news: deque[weakref.ref[Parked[CallT, AnswerT]]] = deque()
        self._wake: Callable[[], None] = lambda: None

    @abstractmethod
    def run_pipeline(
        self, request: Request[InputT], piece: object, side: PipelineSide[CallT, AnswerT]
    ) -> Finish[OutputT]:
        """Runs the unmodified pipeline for one piece, with ``side.call`` in place of its heavy module. [own thread]"""

    def begin_thread(self) -> None:
        """Called first in the thread of each pipeline. [own thread]"""

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

        parked: Parked[CallT, AnswerT] = Parked(run, self._on_news)
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
        """Ends the pipeline's thread."""
        sequence.close()

    def finish(self, request: Request[InputT], sequences: Sequence[Parked[CallT, AnswerT]]) -> Finish[OutputT]:
        """What the pipeline of the only piece returned."""
        end = sequences[0].finish
        assert end is not None  # the sequence was done without an error
        return end
