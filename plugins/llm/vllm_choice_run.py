"""The choices of one request inside vLLM's engine: each a request of its own there, and one answer here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from sixfold.core.batching.model import Finish
from sixfold.core.messages import Usage
from sixfold.plugins.llm.generation import Choice, Generation, TextDelta
from sixfold.plugins.llm.prepare import Preparer
from sixfold.plugins.llm.vllm_choice import ChoiceCollector


class ChoiceRun:
    """One choice inside the engine. Owner: the engine's loop.

    Args:
        outputs: What the engine makes.
        collector: Of the choice.
        num_prompt_tokens: Tokens of the prompt, if this choice accounts for them, else 0.
    """

    def __init__(
        self, outputs: AsyncGenerator[Any, None], collector: ChoiceCollector, *, num_prompt_tokens: int
    ) -> None:
        self._outputs = outputs
        self.collector = collector
        self.num_prompt_tokens = num_prompt_tokens
        self.num_cached_tokens = 0

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """What can be sent, as it comes."""
        add = self.collector.add
        async with aclosing(self._outputs) as outputs:  # at once, not by the garbage collector: closing it aborts
            async for output in outputs:
                delta = add(output.outputs[0])
                if delta is not None:
                    yield delta
                if output.finished and self.num_prompt_tokens:
                    self.num_cached_tokens = output.num_cached_tokens or 0


async def merged(runs: Sequence[ChoiceRun]) -> AsyncGenerator[TextDelta, None]:
    """The deltas of several choices, as they come; one that fails ends all."""
    queue: asyncio.Queue[TextDelta | BaseException | None] = asyncio.Queue()

    async def drain(run: ChoiceRun) -> None:
        try:
            async for delta in run.deltas():
                queue.put_nowait(delta)
        except Exception as error:  # carried to the reader
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(drain(run)) for run in runs]
    try:
        num_left = len(tasks)
        while num_left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
