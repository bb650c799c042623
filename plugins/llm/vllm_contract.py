"""What the family asks of an engine, and what it asks with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """What the family uses of an engine; the real one is `vllm_engine.VllmEngine`, tests have another."""

    async def start(
        self,
        prompt_ids: list[int],
        sampling: Mapping[str, Any],
        *,
        form: Mapping[str, str] | None,
        stream: bool,
        request_id: str,
        adapter: Any,
        cache_salt: str | None,
        put: Callable[[Any], None],
    ) -> None:
        """Begins a request, on the loop that `abort` is called on, too.

        Args:
            prompt_ids: At least one token.
            sampling: Arguments of ``SamplingParams``.
            form: Arguments of ``StructuredOutputsParams``; None for free text.
            stream: Whether outputs are wanted before the end.
            request_id: No other request has it.
            adapter: From `new_adapter`; None for the model alone.
            cache_salt: Only prompts of the same salt share cached blocks.
            put: Gets ``RequestOutput``s of new tokens if ``stream``, else the final one, or the exception that ends the
                request; on this loop, and may not raise.

        Raises:
            Exception: See `is_dead` and `is_refusal`; nothing has begun.
        """
        ...

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Ends requests that were to start; nothing happens to those that are over."""
        ...

    def new_adapter(self, name: str, folder: Path) -> Any:
        """What stands for a LoRA adapter in `start`; the engine reads it when it is first used, and drops those of which
        it has too many by their last use."""
        ...

    def is_dead(self, error: Exception) -> bool:
        """Whether an error means that the engine is gone."""
        ...

    def is_refusal(self, error: Exception) -> bool:
        """Whether an error means that the request asks for what can't be honoured."""
        ...

    def shutdown(self) -> None:
        """Ends the engine's processes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedChoice:
    """One choice of one prompt, ready for the engine.

    Attributes:
        choice: Index over all prompts and choices.
        token_ids: The prompt, at least one token.
        sampling: Arguments of vLLM's ``SamplingParams``.
        counts_prompt: Whether this choice accounts for the prompt's tokens.
        echo_text: The prompt's text, if it precedes the answer.
        form: See `Engine.start`.
        cache_salt: See `Engine.start`.
        opens_in_reasoning: Whether the prompt ended within the model's reasoning.
        adapter: See `Engine.start`.
    """

    choice: int
    token_ids: list[int]
    sampling: Mapping[str, Any]
    counts_prompt: bool
    echo_text: str
    form: Mapping[str, str] | None
    cache_salt: str | None
    opens_in_reasoning: bool
    adapter: Any = None
