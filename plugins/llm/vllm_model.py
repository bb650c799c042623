"""vLLM's engine as the core sees it: an `EngineModel` with the inputs and outputs of the native runtime."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

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
from sixfold.plugins.llm.vllm_choice_run import ChoiceRun, finish
from sixfold.plugins.llm.vllm_contract import Engine, PreparedChoice
from sixfold.plugins.llm.vllm_metrics import EngineCounts
from sixfold.plugins.llm.vllm_options import VllmOptions
from sixfold.plugins.llm.vllm_sampling import sampling_arguments
from sixfold.plugins.llm.vllm_sleep import Wakefulness
from sixfold.plugins.llm.vllm_structure import structured_outputs

_log = logging.getLogger(__name__)


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
        found = self._adapters.get(wanted.adapter)  # once: `adjust` may put others in their place meanwhile
        if found is None:
            raise ModelNotFound(
                f"The adapter {wanted.adapter[:200]!r} is not loaded any more. GET /v1/models lists all.", param="model"
            )
        return found

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

    async def run(
        self,
        request: Request[ChatInput | CompletionInput],
        prepared: tuple[PreparedChoice, ...],
        tell: Callable[[TextDelta | Generation], None],
    ) -> Finish[TextDelta | Generation]:
        """Runs all choices at once in the engine; one that fails ends all.

        Raises:
            DeviceLost: The engine is dead.
            InvalidRequest: It refuses the request.
        """
        if self._wakefulness is not None:
            try:
                await self._wakefulness.enter()
            except Exception as error:
                if self._engine.is_dead(error):
                    raise DeviceLost("vLLM's engine has ended in its sleep") from error
                raise
        self._num_inside += 1
        runs = [self._choice_run(request, choice, tell) for choice in prepared]
        try:
            for run in runs:
                await run.start(self._engine, stream=request.input.stream)
            await asyncio.gather(*(run.done for run in runs))
        except Exception as error:
            if self._engine.is_dead(error):
                raise DeviceLost("vLLM's engine has ended") from error
            if self._engine.is_refusal(error):
                raise InvalidRequest(f"The engine refuses the request: {error}") from error
            raise
        finally:
            try:
                await self._abort([run.request_id for run in runs if run.leave()])
            finally:
                self._num_inside -= 1
                if self._wakefulness is not None:
                    self._wakefulness.leave()
        return finish(runs, self._preparer)

    async def _abort(self, request_ids: list[str]) -> None:
        if not request_ids:
            return
        try:
            # All at once, and to the end: who is cancelled twice must leave nothing behind that computes for nobody.
            await asyncio.shield(self._engine.abort(request_ids))
        except Exception as error:  # why the request ends is told by what has ended it
            _log.warning("the engine did not abort %s: %r", ", ".join(request_ids), error)

    def _choice_run(
        self,
        request: Request[ChatInput | CompletionInput],
        prepared: PreparedChoice,
        tell: Callable[[TextDelta | Generation], None],
    ) -> ChoiceRun:
        wanted = request.input
        collector = ChoiceCollector(
            choice=prepared.choice,
            stream=wanted.stream,
            num_top_logprobs=wanted.params.num_top_logprobs,
            token_bytes=self._token_bytes,
            echo_text=prepared.echo_text,
            opens_in_reasoning=prepared.opens_in_reasoning,
        )
        return ChoiceRun(f"{request.request_id}-{prepared.choice}", prepared, collector, tell)

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
