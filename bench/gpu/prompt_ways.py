"""The ways in which `native_prompts` has prompts computed, and the steps that it measures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

WAYS = ("torch", "tiles", "chunks")
_FLOPS = 790e12  # bfloat16 products of 8,192 cubed on an H200
_BYTES_PER_S = 4.3e12  # a copy on an H200


@contextmanager
def way(name: str, decoder: Any) -> Generator[None]:
    """Steps laid out and computed inside go this way."""
    from sixfold.plugins.llm import chunk_kernels, paged_kernels

    kernels: Any = chunk_kernels
    kept = decoder._is_tiled, kernels.attend, kernels.chunk_tile
    decoder._is_tiled = name != "torch"
    if name == "tiles":
        kernels.attend = paged_kernels.attend
        kernels.chunk_tile = lambda _dim, _dtype: chunk_kernels.ChunkTile(64, 64, 4, 2)
    try:
        yield
    finally:
        decoder._is_tiled, kernels.attend, kernels.chunk_tile = kept


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Steps:
    """The steps of a case, as one way lays them out: (rows, prompt tokens, tokens a chunk)."""

    def __init__(self, decoder: Any, case: tuple[int, int, int]) -> None:
        from sixfold.plugins.llm.cached_tokens import CachedTokens

        self.decoder = decoder
        self.num_rows, self.prompt, self.chunk = case
        self.rows = [CachedTokens([300 + (7 * i + 13 * r) % 1000 for i in range(self.prompt)]) for r in range(case[0])]
        for row in self.rows:
            assert decoder.cache.reserve(row, self.prompt) == self.prompt
        self.num_tokens = self.num_rows * self.chunk

    def free(self) -> None:
        for row in self.rows:
            self.decoder.cache.free(row)

    def layouts(self) -> Iterator[Any]:
        for at in range(0, self.prompt, self.chunk):
            for row in self.rows:
                row.num_computed = at
            yield self.decoder.lay_out(self.rows, [self.chunk] * self.num_rows)

    def whole(self) -> Any:
        """Computes the prompts; the last step's logits."""
        return [self.decoder.forward(layout) for layout in self.layouts()][-1]

    def inputs(self) -> list[Any]:
        """Random queries, keys and values of a step of one layer."""
        import torch

        cache, num_heads = self.decoder.cache, self.decoder._model.config.num_attention_heads
        layer, device = cache.layers[0], self.decoder.device
        shapes = [(1, self.num_tokens, n, layer.head_dim) for n in (num_heads, layer.num_kv_heads, layer.num_kv_heads)]
        return [torch.randn(shape, dtype=cache.dtype, device=device).transpose(1, 2) for shape in shapes]

    def attention(self, inputs: Sequence[Any]) -> Callable[[], list[Any]]:
        """One layer's calls, one for each step."""
        from sixfold.plugins.llm.attention import PagedStep, paged_attention

        caches = self.decoder.cache.layers
        steps = [PagedStep(layout=self.decoder.on_device(layout), caches=caches) for layout in self.layouts()]
        layer: Any = SimpleNamespace(layer_idx=0)
        return lambda: [paged_attention(layer, *inputs, None, paged_step=step)[0] for step in steps]

    def floor(self) -> dict[str, float]:
        """Seconds of a layer's attention and of the whole, if products or the memory were all that takes time."""
        cache, config = self.decoder.cache, self.decoder._model.config
        layer, num_heads, num_tokens = cache.layers[0], config.num_attention_heads, self.num_rows * self.prompt
        flops = 4 * num_tokens * (self.prompt + 1) / 2 * num_heads * layer.head_dim
        moved = num_tokens * layer.head_dim * (2 * num_heads + 4 * layer.num_kv_heads) * cache.dtype.itemsize
        attention_s = max(flops / _FLOPS, moved / _BYTES_PER_S)
        weights = sum(p.numel() for p in self.decoder._model.model.layers.parameters())
        products_s = 2 * weights * num_tokens / _FLOPS
        return {"attention_s": attention_s, "step_s": products_s + attention_s * config.num_hidden_layers}
