"""vLLM as an embedder: an `EngineModel` with the inputs, outputs and rules of this plugin's native family."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sixfold.core.batching.model import DeviceLost, EngineModel, Finish, ModelInfo
from sixfold.core.errors import InvalidRequest, StepFailed
from sixfold.core.messages import Request, Usage
from sixfold.plugins.embedding.encoder import Outputs
from sixfold.plugins.embedding.outputs.answer import as_output
from sixfold.plugins.embedding.packing import TokenIds
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput
from sixfold.plugins.embedding.tokenizing import Prompts, TextTokenizer

_CHARACTERS_A_TOKEN = 4


class Embedder(Protocol):
    """What the family uses of an engine; the real one is `vllm_engine.VllmEmbedder`, tests have another."""

    async def embed(self, token_ids: list[int], request_id: str) -> NDArray[np.float32]:
        """The vector of one input. Cancelling it aborts."""
        ...

    def is_dead(self, error: BaseException) -> bool:
        """Whether an error means that the engine is gone."""
        ...

    def is_refusal(self, error: BaseException) -> bool:
        """Whether an error means that the request asks for what can't be honoured."""
        ...

    def shutdown(self) -> None:
        """Ends the engine's processes."""
        ...


class VllmEmbeddingModel(EngineModel[tuple[TokenIds, ...], EmbeddingInput, EmbeddingOutput]):
    """Serves an embedder that vLLM runs. Each input is a request of the engine.

    Args:
        engine: Loaded.
        info: What the loader found out.
        tokenizer: With the model's limits.
        prompts: The model's own.
        max_inputs: Most inputs in one request.
        dimension: Values in a vector.
        normalizes: Whether vectors have length 1.
        max_running_requests: What the engine takes into a step.
    """

    def __init__(
        self,
        *,
        engine: Embedder,
        info: ModelInfo,
        tokenizer: TextTokenizer,
        prompts: Prompts,
        max_inputs: int,
        dimension: int,
        normalizes: bool,
        max_running_requests: int,
    ) -> None:
        self._engine = engine
        self._info = info
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._max_inputs = max_inputs
        self._dimension = dimension
        self._normalizes = normalizes
        self._max_running_requests = max_running_requests
        self._num_inputs = 0
        self._num_tokens = 0

    @property
    def info(self) -> ModelInfo:
        """See `EngineModel`."""
        return self._info

    @property
    def max_running_requests(self) -> int:
        """See `EngineModel`."""
        return self._max_running_requests

    def estimate_units(self, request: Request[EmbeddingInput]) -> int:
        """See `EngineModel`; a token is about four characters, and nothing over the model's limit is computed."""
        wanted = request.input
        longest = self._tokenizer.max_tokens
        sizes = [len(text) // _CHARACTERS_A_TOKEN + 2 for text in wanted.texts] + [len(row) for row in wanted.token_ids]
        return max(1, sum(min(size, longest) for size in sizes))

    def prepare(self, request: Request[EmbeddingInput]) -> tuple[TokenIds, ...]:
        """Tokenizes all inputs.

        Raises:
            ContextLengthExceeded: An input is over the model's limit and must not be cut.
            InvalidRequest: Unknown prompt, wrong token ids, too many inputs or dimensions.
        """
        wanted = request.input
        self._check(wanted)
        prompt = self._prompts.choose(wanted)
        limit = wanted.truncate_tokens
        if wanted.token_ids:
            return tuple(self._tokenizer.check_ids(wanted.token_ids, first_index=0, truncate_tokens=limit))
        texts = [prompt + text for text in wanted.texts] if prompt else wanted.texts
        return tuple(self._tokenizer.encode_texts(texts, first_index=0, truncate_tokens=limit, task=wanted.input_type))

    async def generate(
        self, request: Request[EmbeddingInput], prepared: tuple[TokenIds, ...]
    ) -> AsyncIterator[Finish[EmbeddingOutput]]:
        """Embeds all inputs at once in the engine.

        Raises:
            DeviceLost: The engine is dead.
            InvalidRequest: It refuses the request.
            StepFailed: A vector is not finite.
        """
        tasks = [
            asyncio.create_task(self._engine.embed(ids.tolist(), f"{request.request_id}-{index}"))
            for index, ids in enumerate(prepared)
        ]
        try:
            vectors = await asyncio.gather(*tasks)
        except Exception as error:
            if self._engine.is_dead(error):
                raise DeviceLost("vLLM's engine has ended") from error
            if self._engine.is_refusal(error):
                raise InvalidRequest(f"The engine refuses the request: {error}") from error
            raise
        finally:
            for task in tasks:  # one that failed, or a client that left, ends all
                task.cancel()
        if not all(np.isfinite(vector).all() for vector in vectors):
            raise StepFailed("The model gave no finite vector for an input of this request.")
        num_tokens = sum(map(len, prepared))
        self._num_inputs += len(prepared)
        self._num_tokens += num_tokens
        yield Finish(
            result=as_output(
                [Outputs(dense=vector) for vector in vectors],
                dimensions=request.input.dimensions,
                normalizes=self._normalizes,
            ),
            usage=Usage(counts={"prompt_tokens": num_tokens}),
        )

    def _check(self, wanted: EmbeddingInput) -> None:
        if wanted.items:
            raise InvalidRequest("The model embeds texts, no images.", param="input")
        if wanted.num_inputs > self._max_inputs:
            raise InvalidRequest(
                f"input has {wanted.num_inputs} items; at most {self._max_inputs} are taken. Send several requests.",
                param="input",
            )
        if wanted.output_types != ("dense",):
            raise InvalidRequest("The model makes dense vectors alone: leave output_types out.", param="output_types")
        if wanted.dimensions is not None and wanted.dimensions > self._dimension:
            raise InvalidRequest(
                f"dimensions is {wanted.dimensions}; the model's vectors have {self._dimension}.", param="dimensions"
            )

    def stats(self) -> Mapping[str, float]:
        """See `Family.metrics` in plugin.py."""
        return {"embedding_inputs_total": self._num_inputs, "embedding_tokens_total": self._num_tokens}

    def close(self) -> None:
        """Ends the engine's processes."""
        self._engine.shutdown()
