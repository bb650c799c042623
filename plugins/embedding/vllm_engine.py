"""The one module of this plugin that imports vLLM: an ``AsyncLLM`` that pools. Imported in the worker process only."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

# vLLM reads its switches from the environment, while it is imported. The process has threads already, so its own
# processes must not be forked; nothing is told to anybody about what runs here; and on a CPU it must neither pin its
# threads to cores that other models use nor leave out one of them. Whoever has set a variable knows better.
for _name, _value in (
    ("VLLM_WORKER_MULTIPROC_METHOD", "spawn"),
    ("VLLM_NO_USAGE_STATS", "1"),
    ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
):
    os.environ.setdefault(_name, _value)

from vllm import PoolingParams  # noqa: E402 - after the switches
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402
from vllm.inputs.engine import tokens_input  # noqa: E402
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402
from vllm.v1.engine.exceptions import EngineDeadError  # noqa: E402

ENGINE_ARGUMENTS = frozenset(field.name for field in dataclasses.fields(AsyncEngineArgs))
"""The names that the installed version knows."""


class VllmEmbedder:
    """An ``AsyncLLM`` behind `vllm_model.Embedder`. Starts its processes when it is made.

    Args:
        arguments: Of ``AsyncEngineArgs``.
        normalizes: Whether vectors get length 1.
    """

    def __init__(self, arguments: Mapping[str, Any], *, normalizes: bool) -> None:
        # In a thread without an event loop: an AsyncLLM that is made beside one belongs to it.
        with ThreadPoolExecutor(1) as elsewhere:
            self.llm: Any = elsewhere.submit(AsyncLLM.from_engine_args, AsyncEngineArgs(**arguments)).result()
        self._params = PoolingParams(task="embed", use_activation=normalizes)

    async def embed(self, token_ids: list[int], request_id: str) -> NDArray[np.float32]:
        """See `vllm_model.Embedder`."""
        async for output in self.llm.encode(tokens_input(token_ids), self._params.clone(), request_id):
            if output.finished:
                found: NDArray[np.float32] = output.outputs.data.float().numpy()
                return found
        raise RuntimeError("vLLM ended the request without a vector")

    def is_dead(self, error: BaseException) -> bool:
        """See `vllm_model.Embedder`."""
        return isinstance(error, EngineDeadError) or bool(self.llm.errored)

    def is_refusal(self, error: BaseException) -> bool:
        """See `vllm_model.Embedder`."""
        return isinstance(error, ValueError | VLLMValidationError)

    def shutdown(self) -> None:
        """See `vllm_model.Embedder`."""
        self.llm.shutdown()

    @property
    def max_model_len(self) -> int:
        """Longest input."""
        return int(self.llm.model_config.max_model_len)

    @property
    def max_num_seqs(self) -> int:
        """Inputs in one step."""
        return int(self.llm.vllm_config.scheduler_config.max_num_seqs)

    @property
    def dimension(self) -> int:
        """Values in a vector."""
        return int(self.llm.model_config.embedding_size)

    @property
    def dtype(self) -> str:
        """Of the weights."""
        return str(self.llm.model_config.dtype).removeprefix("torch.")

    @property
    def vocab_size(self) -> int:
        """Valid token ids are below."""
        return int(self.llm.model_config.get_vocab_size())


def engine_version() -> str:
    """The installed vLLM's version, under whichever name it was published."""
    for name in importlib.metadata.packages_distributions().get("vllm", ()):
        return importlib.metadata.version(name)
    return "unknown"
