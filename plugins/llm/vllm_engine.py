"""The one module that imports vLLM: starts an ``AsyncLLM`` and speaks to it. Imported in the worker process only.

Written against 0.26 to 0.32; what differs between versions is asked of the installed one.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# vLLM reads its switches from the environment, while it is imported. The process has threads already, so its own
# processes must not be forked; nothing is told to anybody about what runs here; and on a CPU it must neither pin its
# threads to cores that other models use nor leave out one of them. Whoever has set a variable knows better.
for _name, _value in (
    ("VLLM_WORKER_MULTIPROC_METHOD", "spawn"),
    ("VLLM_NO_USAGE_STATS", "1"),
    ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
):
    os.environ.setdefault(_name, _value)

from vllm import SamplingParams  # noqa: E402 - after the switches
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402
from vllm.inputs.engine import tokens_input  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams  # noqa: E402
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402
from vllm.v1.engine.exceptions import EngineDeadError  # noqa: E402
from vllm.v1.metrics.loggers import StatLoggerBase  # noqa: E402

from sixfold.plugins.llm.vllm_metrics import EngineCounts  # noqa: E402

ENGINE_ARGUMENTS = tuple(field.name for field in dataclasses.fields(AsyncEngineArgs))
"""The names that the installed version knows."""


class VllmEngine:
    """An ``AsyncLLM`` behind `vllm_contract.Engine`. Starts its processes when it is made.

    Args:
        arguments: Of ``AsyncEngineArgs``.
        counts: Gets what the engine reports.
    """

    def __init__(self, arguments: Mapping[str, Any], counts: EngineCounts) -> None:
        # In a thread without an event loop: an AsyncLLM that is made beside one belongs to it, and ours is that of the
        # adapter, which calls `start`.
        with ThreadPoolExecutor(1) as elsewhere:
            self.llm: Any = elsewhere.submit(_start, dict(arguments), counts).result()
        self._adapter_numbers = itertools.count(1)

    def new_adapter(self, name: str, folder: Path) -> Any:
        """See `vllm_contract.Engine`."""
        return LoRARequest(name, next(self._adapter_numbers), str(folder))

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
        """See `vllm_contract.Engine`."""
        parameters = SamplingParams(
            **sampling,
            structured_outputs=None if form is None else StructuredOutputsParams(**form),
            output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # made for this request alone
        )
        prompt = tokens_input(prompt_ids, cache_salt=cache_salt)
        collected = await self.llm.add_request(request_id, prompt, parameters, lora_request=adapter)
        # What reads a collector is a task that each output wakes and that passes it through four generators. At 256 streams
        # this loop is what a token waits for, so outputs are taken where vLLM puts them. No output comes between these lines.
        first, collected.output, collected.put = collected.output, None, put
        if first is not None:
            put(first)

    async def abort(self, request_ids: Sequence[str]) -> None:
        """See `vllm_contract.Engine`."""
        await self.llm.abort(request_ids)

    def is_dead(self, error: Exception) -> bool:
        """See `vllm_contract.Engine`."""
        return isinstance(error, EngineDeadError) or bool(self.llm.errored)

    def is_refusal(self, error: Exception) -> bool:
        """See `vllm_contract.Engine`."""
        return isinstance(error, ValueError | VLLMValidationError)

    async def sleep(self) -> None:
        """Moves the weights to the host's memory and drops the cache."""
        await self.llm.sleep(level=1)

    async def wake_up(self) -> None:
        """Undoes `sleep`."""
        await self.llm.wake_up()

    def shutdown(self) -> None:
        """See `vllm_contract.Engine`."""
        self.llm.shutdown()

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus answer."""
        return int(self.llm.model_config.max_model_len)

    @property
    def max_num_seqs(self) -> int:
        """Sequences in one step, over all copies."""
        config = self.llm.vllm_config
        return int(config.scheduler_config.max_num_seqs) * int(config.parallel_config.data_parallel_size)

    @property
    def num_blocks(self) -> int:
        """Cache blocks; 0 if the model has no cache."""
        return int(self.llm.vllm_config.cache_config.num_gpu_blocks or 0)

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return int(self.llm.vllm_config.cache_config.block_size)

    @property
    def dtype(self) -> str:
        """Of the weights."""
        return str(self.llm.model_config.dtype).removeprefix("torch.")

    @property
    def vocab_size(self) -> int:
        """Rows of the output head."""
        return int(self.llm.model_config.get_vocab_size())


def _start(arguments: dict[str, Any], counts: EngineCounts) -> Any:
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[_stat_logger(counts)])


def _stat_logger(counts: EngineCounts) -> Any:
    class Logger(StatLoggerBase):  # type: ignore[misc]  # vLLM is not installed where types are checked
        """Adds each step's reports to ``counts``."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            self._rank = engine_index

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            """See vLLM."""
            counts.record(scheduler_stats, iteration_stats, engine_idx)

        def log_engine_initialized(self) -> None:
            """Nothing to say."""

    return Logger
