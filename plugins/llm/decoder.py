"""A transformers model on the paged cache: layouts in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sixfold.plugins.llm.attention import PAGED_STEP, PagedStep
from sixfold.plugins.llm.batch_layout import BatchLayout, lay_out
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.kv_cache import KvCache
from sixfold.plugins.llm.lora_adapter import Adapter
from sixfold.plugins.llm.lora_sites import AdapterRouter


class Decoder:
    """A transformers model whose attention is the paged one.

    Args:
        model: The model, in evaluation mode.
        cache: Where its keys and values go.
        router: Of its adapters; None if it can have none.
    """

    def __init__(self, model: Any, cache: KvCache, router: AdapterRouter | None = None) -> None:
        self._model = model
        self.router = router
        self._base = getattr(model, model.base_model_prefix)
        self.cache = cache
        self.device: torch.device = cache.tensors[0].device

    def forward(self, layout: BatchLayout) -> Tensor | None:
        """Fills the cache for all rows; returns the logits of the wanted ones, [rows, vocabulary], or None if none is."""
        if not layout.adapters:
            return self._forward(layout)
        assert self.router is not None, "without a router there are no adapters"
        self.router.begin(layout.adapters, layout.contexts.sequences)
        try:
            return self._forward(layout)
        finally:
            self.router.end()

    def _forward(self, layout: BatchLayout) -> Tensor | None:
        step = PagedStep(layout=layout, caches=self.cache.tensors)
        arguments: dict[str, Any] = {
            "input_ids": layout.token_ids,
            "position_ids": layout.position_ids,
            "use_cache": False,
            PAGED_STEP: step,
        }
        if not len(layout.logit_rows):
            self._base(**arguments)
            return None
        logits: Tensor = self._model(**arguments, logits_to_keep=layout.logit_rows).logits
        return logits[0]

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        chunks: Sequence[int] = (),
        adapters: Sequence[Adapter | None] = (),
    ) -> Tensor | None:
        """Computes prompts outside of any request and gives their blocks back; for warm-up and checks.

        Args:
            prompts: Token ids.
            chunks: Tokens of each prompt to compute per forward pass; all at once by default.
            adapters: Of each prompt; none by default.

        Returns:
            [prompts, vocabulary], the logits after each prompt; None when the cache has no room.
        """
        own = adapters or [None] * len(prompts)
        rows = [CachedTokens(prompt, adapter=adapter) for prompt, adapter in zip(prompts, own, strict=True)]
        logits: Tensor | None = None
        try:
            for size in chunks or [len(prompts[0])]:
                if any(self.cache.reserve(row, size) < size for row in rows):
                    return None
                layout = lay_out(rows, [size] * len(rows), block_size=self.cache.block_size, device=self.device)
                with torch.inference_mode():
                    logits = self.forward(layout)
                for row in rows:
                    row.num_computed += size
        finally:
            for row in rows:
                self.cache.free(row)
        return logits
