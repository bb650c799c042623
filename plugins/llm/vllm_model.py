"""vLLM's engine as the core sees it: an `EngineModel` with the inputs and outputs of the native runtime."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from sixfold.core.batching.model import DORMANT, DeviceLost, EngineModel, Finish, ModelInfo
from sixfold.core.errors import InvalidRequest, ModelNotFound
from sixfold.core.messages import Request
from sixfold.plugins.llm.conversation import ConversationWriter
from sixfold.plugins.llm.generation import ChatInput, CompletionInput, Generation, TextDelta
from sixfold.plugins.llm.lora_files import check_adapter
from sixfold.plugins.llm.prepare import Preparer, estimate_tokens, split_input
from sixfold.plugins.llm.text_codec import TextCodec
from sixfold.plugins.llm.vllm_choice import ChoiceCollector, remembered
from sixfold.plugins.llm.vllm_choice_run import ChoiceRun, finish, merged
from sixfold.plugins.llm.vllm_metrics import EngineCounts
from sixfold.plugins.llm.vllm_options import VllmOptions
from sixfold.plugins.llm.vllm_sampling import sampling_arguments
from sixfold.plugins.llm.vllm_sleep import Wakefulness
from sixfold.plugins.llm.vllm_structure import structured_outputs


class Engine(Protocol):
    """What the family uses of an engine; the real one is `vllm_engine.VllmEngine`, tests have another."""

    def generate(
        self,
        prompt_ids: list[int],
        sampling: Mapping[str, Any],
        *,
        form: Mapping[str, str] | None,
        stream: bool,
        request_id: str,
        adapter: Any,
        cache_salt: str | None,
    ) -> AsyncGenerator[Any, None]:
        """Yields ``RequestOutput``s of new tokens if ``stream``, else the final one. Closing it aborts.

        Args:
            prompt_ids: At least one token.
            sampling: Arguments of ``SamplingParams``.
            form: Arguments of ``StructuredOutputsParams``; None for free text.
            stream: Whether outputs are wanted before the end.
            request_id: No other request has it.
            adapter: From `new_adapter`; None for the model alone.
            cache_salt: Only prompts of the same salt share cached blocks.
        """
        ...

    def new_adapter(self, name: str, folder: Path) -> Any:
        """What stands for a LoRA adapter in `generate`; the engine reads it when it is first used, and drops those of which
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
        form: See `Engine.generate`.
        cache_salt: See `Engine.generate`.
        opens_in_reasoning: Whether the prompt ended within the model's reasoning.
        adapter: See `Engine.generate`.
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


class VllmModel(EngineModel[tuple[PreparedChoice, ...], ChatInput | CompletionInput, TextDelta | Generation]):
    """Serves what vLLM runs.

    Each choice is a request of the engine: vLLM itself makes n of them out of one, but refuses several greedy ones, and
    draws n seeds from one by another rule. The prefix cache keeps a prompt from being computed n times.

    Args:
        engine: Loaded.
        preparer: Renders, tokenizes and checks, as for the native runtime.
        conversations: What the preparer renders with.
        codec: Its tokenizer, for the bytes of logprobs.
        counts: Filled by the engine's stat logger.
        info: Facts about it.
        max_running_requests: What the engine takes into its batch, and a few more that wait at hand.
        max_running_units: Tokens that the engine may hold at once.
        wakefulness: Puts the model to sleep when nobody asks for it.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        preparer: Preparer,
        conversations: ConversationWriter,
        codec: TextCodec,
        counts: EngineCounts,
        info: ModelInfo,
        max_running_requests: int,
        max_running_units: int,
        wakefulness: Wakefulness | None = None,
    ) -> None:
        self._engine = engine
        self._preparer = preparer
        self._conversations = conversations
        self._token_bytes = remembered(codec.token_bytes)
        self._counts = counts
        self._info = info
        self._max_running_requests = max_running_requests
        self._max_running_units = max_running_units
        self._wakefulness = wakefulness
        self._adapters: Mapping[str, Any] = {}
        self._num_inside = 0

    @property
    def info(self) -> ModelInfo:
        """Facts about the loaded model."""
        return self._info

    def attach(self, wake: Callable[[], None]) -> None:
        """See `EngineModel`."""
        if self._wakefulness is not None:
            self._wakefulness.on_change = wake

    @property
    def max_running_units(self) -> int:
        """See `EngineModel`."""
        return self._max_running_units

    @property
    def max_running_requests(self) -> int:
        """See `EngineModel`."""
        return self._max_running_requests

    def estimate_units(self, request: Request[ChatInput | CompletionInput]) -> int:
        """Guesses tokens from text lengths."""
        return estimate_tokens(request.input, self._info.max_model_len or 1)

    def prepare(self, request: Request[ChatInput | CompletionInput]) -> tuple[PreparedChoice, ...]:
        """Renders and tokenizes all prompts.

        Raises:
            ContextLengthExceeded: Prompt and answer do not fit.
            InvalidRequest: The template rejects the conversation, a token id is out of range, or the answer can't be held to
                its form.
        """
        wanted = request.input
        if wanted.kv_transfer is not None:
            raise InvalidRequest(
                "'kv_transfer_params' are not passed to vLLM yet. Leave them out.", param="kv_transfer_params"
            )
        if isinstance(wanted, CompletionInput) and wanted.echo and wanted.params.num_top_logprobs is not None:
            raise InvalidRequest(
                "Log probabilities of prompts are not served by vLLM yet: leave out 'echo'.", param="echo"
            )
        adapter = self._adapter(wanted)
        form = structured_outputs(self._conversations, wanted)
        markers = self._conversations.kept_markers(wanted)
        return tuple(
            PreparedChoice(
                choice=state.choice,
                token_ids=state.token_ids,
                sampling=sampling_arguments(wanted.params, state, keeps_markers=bool(markers)),
                counts_prompt=state.counts_prompt,
                echo_text=state.text,
                form=form,
                cache_salt=state.salt.hex() if state.salt else None,
                opens_in_reasoning=state.opens_in_reasoning,
                adapter=adapter,
            )
            for piece in split_input(wanted)
            for state in self._preparer.prepare(wanted, piece, tenant=request.tenant)
        )

    def _adapter(self, wanted: ChatInput | CompletionInput) -> Any:
        if wanted.adapter is None:
            return None
        if wanted.adapter not in self._adapters:
            raise ModelNotFound(
                f"The adapter {wanted.adapter[:200]!r} is not loaded any more. GET /v1/models lists all.", param="model"
            )
        return self._adapters[wanted.adapter]

    def adjust(self, options: BaseModel) -> None:
        """Makes adapters known or unknown; requests that run keep theirs.

        Raises:
            ConfigError: An adapter can't be read, or has what vLLM does not serve.
        """
        assert isinstance(options, VllmOptions)
        given = {} if options.lora is None else options.lora.adapters
        for name, ref in given.items():
            if name not in self._adapters:
                check_adapter(ref.local_path, name)
        self._adapters = {
            name: self._adapters.get(name) or self._engine.new_adapter(name, ref.local_path)
            for name, ref in given.items()
        }

    async def generate(
        self, request: Request[ChatInput | CompletionInput], prepared: tuple[PreparedChoice, ...]
    ) -> AsyncIterator[TextDelta | Finish[TextDelta | Generation]]:
        """Runs all choices at once in the engine.

        Raises:
            DeviceLost: The engine is dead.
            InvalidRequest: It refuses the request.
        """
        if self._wakefulness is not None:
            await self._wakefulness.enter()
        self._num_inside += 1
        try:
            runs = [self._run(request, choice) for choice in prepared]
            deltas = runs[0].deltas() if len(runs) == 1 else merged(runs)
            async with aclosing(deltas):
                async for delta in deltas:
                    yield delta
        except Exception as error:
            if self._engine.is_dead(error):
                raise DeviceLost("vLLM's engine has ended") from error
            if self._engine.is_refusal(error):
                raise InvalidRequest(f"The engine refuses the request: {error}") from error
            raise
        finally:
            self._num_inside -= 1
            if self._wakefulness is not None:
                self._wakefulness.leave()
        yield finish(runs, self._preparer)

    def _run(self, request: Request[ChatInput | CompletionInput], prepared: PreparedChoice) -> ChoiceRun:
        wanted = request.input
        outputs = self._engine.generate(
            prepared.token_ids,
            prepared.sampling,
            form=prepared.form,
            stream=wanted.stream,
            request_id=f"{request.request_id}-{prepared.choice}",
            adapter=prepared.adapter,
            cache_salt=prepared.cache_salt,
        )
        collector = ChoiceCollector(
            choice=prepared.choice,
            stream=wanted.stream,
            num_top_logprobs=wanted.params.num_top_logprobs,
            token_bytes=self._token_bytes,
            echo_text=prepared.echo_text,
            opens_in_reasoning=prepared.opens_in_reasoning,
        )
        return ChoiceRun(outputs, collector, num_prompt_tokens=len(prepared.token_ids) * prepared.counts_prompt)

    def stats(self) -> Mapping[str, float]:
        """See `vllm_metrics`."""
        blocks = self._info.details.get("kv_blocks_total", 0)
        asleep = self._wakefulness is not None and self._wakefulness.asleep
        counts = self._counts.stats(idle=not self._num_inside)
        return {**counts, "kv_blocks_total": float(blocks), DORMANT: float(asleep)}

    def close(self) -> None:
        """Ends the engine's processes."""
        if self._wakefulness is not None:
            self._wakefulness.close()
        self._engine.shutdown()
