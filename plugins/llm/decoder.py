"""A transformers model on the paged cache: layouts in, logits out."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sixfold.core.runtime.cuda_graphs import Capture, capture_cuda_graph, has_kernels
from sixfold.plugins.llm.attention import PAGED_STEP, PagedStep
from sixfold.plugins.llm.batch_layout import BatchLayout, lay_out
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.divided_attention import DividedRows
from sixfold.plugins.llm.hidden_taps import HiddenTaps
from sixfold.plugins.llm.kv_cache import KvCache
from sixfold.plugins.llm.lora_adapter import Adapter
from sixfold.plugins.llm.lora_sites import AdapterRouter
from sixfold.plugins.llm.prefill_ranks import PrefillRanks
from sixfold.plugins.llm.prompt_images import PromptImage
from sixfold.plugins.llm.rope_positions import RopePositions
from sixfold.plugins.llm.step_graphs import StepGraphs, with_carried
from sixfold.plugins.llm.tensors import to_tensor

_LOG = logging.getLogger(__name__)

_WARM_UP_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 64)
_WARM_UP_PROMPT_TOKENS = 256
# On GPUs: enough rows that a context is never cut (each number of parts is a kernel), and a prompt whose products are large.
_WARM_UP_TILED_ROWS = (128, 256)
_WARM_UP_TILED_TOKENS = 2048


class Decoder:
    """A transformers model whose attention is the paged one.

    Args:
        model: The model, in evaluation mode.
        cache: Where its keys and values go.
        graph_rows: Largest step in tokens that `record` records.
        router: Of its adapters; None if it can have none.
    """

    def __init__(self, model: Any, cache: KvCache, *, graph_rows: int = 0, router: AdapterRouter | None = None) -> None:
        self._model = model
        self._taps: HiddenTaps | None = None
        self.router = router
        self._base = getattr(model, model.base_model_prefix)
        self.cache = cache
        self.device: torch.device = cache.tensors[0].device
        self._is_tiled = has_kernels(self.device)
        self._graph_rows = graph_rows
        self._graphs: StepGraphs | None = None
        self._ranks: PrefillRanks | None = None

    def divide(self, ranks: PrefillRanks) -> None:
        """Has long chunks of prompts computed by several ranks from now on."""
        self._ranks = ranks

    def lay_out(self, sequences: Sequence[CachedTokens], units: Sequence[int]) -> BatchLayout:
        """One step's input; see `batch_layout.lay_out`. Kernels for GPUs are given theirs in `forward`."""
        device = torch.device("cpu") if self._is_tiled else self.device
        size, grouped = self.cache.block_size, not self._is_tiled
        divided = () if self._ranks is None else self._ranks.choose(sequences, units)
        if self._ranks is None or not any(divided):
            return lay_out(sequences, units, block_size=size, device=device, grouped=grouped)
        own = [n - elsewhere for n, elsewhere in zip(units, divided, strict=True)]
        layout = lay_out(sequences, own, block_size=size, device=device, grouped=grouped, num_skipped=divided)
        chunks = [self._ranks.store(s, n) for s, n in zip(sequences, divided, strict=True) if n]
        return dataclasses.replace(layout, divided=tuple(chunks))

    def tap(self, places: Sequence[int]) -> HiddenTaps:
        """Keeps what enters these layers, step by step; such steps are not recorded as graphs."""
        lists = (module for module in self._model.get_decoder().modules() if isinstance(module, nn.ModuleList))
        layers = next(found for found in lists if len(found) == self.cache.num_model_layers)
        self._taps = HiddenTaps(list(layers), places)
        return self._taps

    @property
    def embedding(self) -> nn.Module:
        """The table of its tokens."""
        table: nn.Module = self._model.get_input_embeddings()
        return table

    def record(self, *, max_context: int, capture: Capture | None = None) -> None:
        """Records small steps so that the host need not start their kernels one by one; does nothing on a CPU.

        Args:
            max_context: Tokens of the longest sequence.
            capture: Makes a call repeatable; CUDA graphs unless given.
        """
        if not self._is_tiled or self._graph_rows < 1 or self._taps is not None:
            return
        try:
            with torch.inference_mode():
                self._graphs = StepGraphs(
                    self._compute,
                    capture or capture_cuda_graph(self.device),
                    device=self.device,
                    max_rows=self._graph_rows,
                    max_blocks=-(-max_context // self.cache.block_size),
                )
        except RuntimeError as error:  # the model does what a graph can't hold, such as asking for a value
            _LOG.warning("Steps are not recorded as CUDA graphs, so small ones take longer: %s", error)

    def starts_at_once(self, layout: BatchLayout) -> bool:
        """Whether the host starts the step by one call; where nothing is recorded, all steps are alike."""
        is_plain = not layout.adapters and not layout.divided
        return self._graphs is None or (is_plain and self._graphs.can_run(layout))

    def forward(self, layout: BatchLayout, chosen: Tensor | None = None) -> Tensor | None:
        """Fills the cache for all rows; returns the logits of the wanted ones, [rows, vocabulary], or None if none is.

        Args:
            layout: The rows.
            chosen: The tokens that the step before chose, [rows] on the device, if the layout carries some of them.
        """
        if self._taps is not None:
            self._taps.begin(layout)
        if layout.divided:
            return self._forward_divided(layout, chosen)
        if layout.adapters:
            return self._forward_adapted(layout, chosen)
        if self._graphs is not None and self._graphs.can_run(layout):
            return self._graphs.run(layout, chosen)
        return self._compute(self._completed(self.on_device(layout), chosen))

    @staticmethod
    def _completed(layout: BatchLayout, chosen: Tensor | None) -> BatchLayout:
        if layout.carried is None or chosen is None:
            return layout
        carried = to_tensor(layout.carried, chosen.device)
        return dataclasses.replace(layout, token_ids=with_carried(layout.token_ids[0], carried, chosen).unsqueeze(0))

    def _forward_adapted(self, layout: BatchLayout, chosen: Tensor | None) -> Tensor | None:
        """A step with adapters; no graph holds one, because which adapters there are differs from step to step."""
        assert self.router is not None, "without a router there are no adapters"
        self.router.begin(layout.adapters, layout.contexts.sequences)
        try:
            return self._compute(self._completed(self.on_device(layout), chosen))
        finally:
            self.router.end()

    def _forward_divided(self, layout: BatchLayout, chosen: Tensor | None) -> Tensor | None:
        """A step with chunks that other ranks compute along; this one's part of them follows the layout's rows."""
        assert self._ranks is not None, "without ranks nothing is divided"
        own = self._completed(self.on_device(layout), chosen)

        def compute(rows: DividedRows, token_ids: Tensor, positions: Tensor) -> Tensor | None:
            directions = own.position_ids.shape[:-1]
            whole = dataclasses.replace(
                own,
                token_ids=torch.cat((own.token_ids, token_ids[None]), -1),
                position_ids=torch.cat((own.position_ids, positions.expand(*directions, -1)), -1),
            )
            return self._compute(whole, dataclasses.replace(rows, stored=layout.divided))

        return self._ranks.run(layout.divided, compute)

    def on_device(self, layout: BatchLayout) -> BatchLayout:
        """A layout of `lay_out` as layers take it."""
        if not self._is_tiled:
            return layout
        from sixfold.plugins.llm.tiled_rows import TiledRows

        return layout.to(self.device, TiledRows(layout.contexts, self.device))

    def _compute(self, layout: BatchLayout, divided: DividedRows | None = None) -> Tensor | None:
        step = PagedStep(layout=layout, caches=self.cache.layers, divided=divided)
        arguments: dict[str, Any] = {
            **self._embedded(layout),
            "position_ids": layout.position_ids,
            "use_cache": False,
            PAGED_STEP: step,
        }
        if not len(layout.logit_rows):
            self._base(**arguments)
            return None
        logits: Tensor = self._model(**arguments, logits_to_keep=layout.logit_rows).logits
        return logits[0]

    def _embedded(self, layout: BatchLayout) -> dict[str, Tensor]:
        if layout.image_features is None:
            return {"input_ids": layout.token_ids}
        embeddings: Tensor = self._model.get_input_embeddings()(layout.token_ids)
        embeddings[0, layout.image_rows] = layout.image_features.to(embeddings.dtype)
        return {"inputs_embeds": embeddings}

    def warm_up(self, max_tokens: int) -> None:
        """Runs decodes of several sizes and prompts, and records small steps: then no request waits for a kernel to be built.

        Args:
            max_tokens: Of the longest sequence.
        """
        for num_rows in (*_WARM_UP_ROWS, *(_WARM_UP_TILED_ROWS if self._is_tiled else ())):
            self.run([[0]] * num_rows)
        num_tokens = min(_WARM_UP_PROMPT_TOKENS, max_tokens)
        self.run([[0] * num_tokens])
        if self._is_tiled:
            self.run([[0] * num_tokens], (num_tokens // 2, num_tokens - num_tokens // 2))
            self.run([[0] * min(_WARM_UP_TILED_TOKENS, max_tokens)])
        self.record(max_context=max_tokens)

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        chunks: Sequence[int] = (),
        *,
        images: Sequence[PromptImage] = (),
        rope: RopePositions | None = None,
        adapters: Sequence[Adapter | None] = (),
    ) -> Tensor | None:
        """Computes prompts outside of any request and gives their blocks back; for warm-up and checks.

        Args:
            prompts: Token ids.
            chunks: Tokens of each prompt to compute per forward pass; all at once by default.
            images: Encoded ones of each prompt.
            rope: Positions of each prompt, if they are not its places.
            adapters: Of each prompt; none by default.

        Returns:
            [prompts, vocabulary], the logits after each prompt; None when the cache has no room.
        """
        own = adapters or [None] * len(prompts)
        rows = [
            CachedTokens(prompt, images=images, rope=rope, adapter=adapter)
            for prompt, adapter in zip(prompts, own, strict=True)
        ]
        logits: Tensor | None = None
        try:
            for size in chunks or [len(prompts[0])]:
                if any(self.cache.reserve(row, size) < size for row in rows):
                    return None
                layout = self.lay_out(rows, [size] * len(rows))
                with torch.inference_mode():
                    logits = self.forward(layout)
                for row in rows:
                    row.num_computed += size
        finally:
            for row in rows:
                self.cache.free(row)
        return logits
