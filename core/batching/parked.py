"""A pipeline in a thread of its own that parks where its heavy module would run: its side of that, and the core's."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sixfold.core.batching.model import Finish
from sixfold.core.batching.pipeline_threads import PipelineThreads

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
        except PipelineLeft:
            # Nobody asks where it was: without the traceback what the pipeline held is free at once.
            self.error = PipelineLeft()
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
        threads: Where it runs.
        on_news: Called, from any thread, when there are outputs or a pipeline that had left came back.
    """

    def __init__(
        self,
        run: Callable[[PipelineSide[CallT, AnswerT]], Finish[Any]],
        threads: PipelineThreads,
        on_news: Callable[[weakref.ref[Parked[CallT, AnswerT]]], None] = lambda _parked: None,
    ) -> None:
        self._side: PipelineSide[CallT, AnswerT] = PipelineSide()
        me: weakref.ref[Parked[CallT, AnswerT]] = weakref.ref(self)
        self._side.on_news = lambda: on_news(me)
        self._reported = False
        self._abandon = weakref.finalize(self, self._side.abandon)
        self._abandon.atexit = False
        self._over = threads.run(functools.partial(self._side.main, run))
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
        """Ends a pipeline by an exception at its call; returns when it has ended.

        One that has left is not waited for: it ends when it notices.
        """
        away = self.away
        self._abandon()
        if not away:
            self._over.wait()
