"""The choices of one request inside vLLM's engine: each a request of its own there, and one answer here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from sixfold.core.batching.model import Finish
from sixfold.core.messages import Usage
from sixfold.plugins.llm.generation import Choice, Generation, TextDelta
from sixfold.plugins.llm.prepare import Preparer
from sixfold.plugins.llm.vllm_choice import ChoiceCollector
from sixfold.plugins.llm.vllm_contract import Engine, PreparedChoice


class ChoiceRun:
    """One choice inside the engine. Owner: the engine's loop, on which it is made.

    Args:
        request_id: No other request of the engine has it.
        prepared: The choice.
        collector: Of the choice.
        tell: Gets what can be sent, as it comes.

    Attributes:
        request_id: As given.
        done: Is done when the choice is.
        num_prompt_tokens: Tokens of the prompt, if this choice accounts for them, else 0.
        num_cached_tokens: Of these, how many the engine found in its cache.
    """

    def __init__(
        self, request_id: str, prepared: PreparedChoice, collector: ChoiceCollector, tell: Callable[[TextDelta], None]
    ) -> None:
        self.collector = collector
        self.num_prompt_tokens = len(prepared.token_ids) * prepared.counts_prompt
        self.num_cached_tokens = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.request_id = request_id
        self._prepared = prepared
        self._tell = tell
        self._is_inside = False

    async def start(self, engine: Engine, *, stream: bool) -> None:
        """Begins it; raises what the engine raises."""
        prepared = self._prepared
        self._is_inside = True  # also while the engine begins: who is cancelled then is to be aborted
        await engine.start(
            prepared.token_ids,
            prepared.sampling,
            form=prepared.form,
            stream=stream,
            request_id=self.request_id,
            adapter=prepared.adapter,
            cache_salt=prepared.cache_salt,
            put=self._put,
        )

    def leave(self) -> bool:
        """Takes nothing more; says whether the engine still has it."""
        if not self.done.cancel() and not self.done.cancelled():
            self.done.exception()  # one failure ends the request; those of the other choices are not missed
        return self._is_inside

    def _put(self, made: Any) -> None:
        if self.done.done():
            return  # what an abort leaves behind
        if isinstance(made, BaseException):
            self._is_inside = False
            self.done.set_exception(made)
            return
        if made.finished:
            self._is_inside = False
        try:
            delta = self.collector.add(made.outputs[0])
            if delta is not None:
                self._tell(delta)
        except Exception as error:  # here it would end the engine's loop over all requests
            self.done.set_exception(error)
            return
        if made.finished:
            self.num_cached_tokens = (made.num_cached_tokens or 0) if self.num_prompt_tokens else 0
            self.done.set_result(None)


def finish(runs: Sequence[ChoiceRun], preparer: Preparer) -> Finish[TextDelta | Generation]:
    """The answer of a request whose choices are all done."""
    choices: tuple[Choice, ...] = tuple(run.collector.result() for run in runs)
    counts = {
        "prompt_tokens": sum(run.num_prompt_tokens for run in runs),
        "completion_tokens": sum(len(run.collector.token_ids) for run in runs),
        "cached_tokens": sum(run.num_cached_tokens for run in runs),
        "reasoning_tokens": sum(
            preparer.num_reasoning_tokens(run.collector.token_ids, opens_in_reasoning=run.collector.opens_in_reasoning)
            for run in runs
        ),
    }
    return Finish(
        result=Generation(choices=choices), usage=Usage(counts=counts), finish_reason=choices[0].finish_reason
    )
