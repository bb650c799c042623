"""The kernel for prompts on GPUs, run by Triton's interpreter, gives what torch's operators give chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels for GPUs need Triton")

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sixfold.plugins.llm import attention, chunk_kernels, paged_kernels
from sixfold.plugins.llm.attention import PagedStep
from sixfold.plugins.llm.batch_layout import BatchLayout, lay_out
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.kv_cache import KvCache, LayerShape
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.rows import AttentionRows
from sixfold.plugins.llm.sampling import IntArray
from sixfold.plugins.llm.tensors import int_list
from sixfold.plugins.llm.tiled_rows import TiledRows

CPU = torch.device("cpu")
_BACKENDS: Any = pytest.importorskip("triton.backends.compiler")
_COMPILER: Any = pytest.importorskip("triton.compiler.compiler")
_JIT: Any = pytest.importorskip("triton.runtime.jit")


@dataclass
class Layer:
    """What paged attention reads of a module."""

    layer_idx: int = 0


def step_of(
    prompts: list[tuple[int, int]], *, num_kv_heads: int, head_dim: int, block_size: int = 4
) -> tuple[KvCache, BatchLayout]:
    """A cache of random numbers and a step over it: each prompt has tokens behind it and tokens to compute."""
    num_blocks = 1 + sum(-(-(past + size) // block_size) for past, size in prompts)
    cache = KvCache(
        (LayerShape(num_kv_heads=num_kv_heads, head_dim=head_dim),),
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=torch.float32,
        device=CPU,
    )
    cache.tensors[0].normal_(generator=torch.Generator().manual_seed(num_blocks))
    rows = [CachedTokens([0] * (past + size)) for past, size in prompts]
    for row, (past, size) in zip(rows, prompts, strict=True):
        assert cache.reserve(row, past + size) == past + size
        row.num_computed = past
    return cache, lay_out(rows, [size for _, size in prompts], block_size=block_size, device=CPU)


def attended(cache: KvCache, layout: BatchLayout, inputs: list[Tensor], **options: Any) -> Tensor:
    step = PagedStep(layout=layout, caches=cache.layers)
    query, key, value = inputs
    return attention.paged_attention(Layer(), query, key, value, None, paged_step=step, **options)[0]


def inputs_of(num_tokens: int, num_heads: tuple[int, ...], head_dim: int, seed: int) -> list[Tensor]:
    """Queries, keys and values of a step."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, num_tokens, count, head_dim, generator=generator).transpose(1, 2) for count in num_heads]


def both_ways(
    prompts: list[tuple[int, int]], heads: tuple[int, int], head_dim: int, *, seed: int = 1, **options: Any
) -> list[Tensor]:
    """A layer's attention by torch's operators and by the kernels."""
    num_kv_heads, group = heads
    cache, layout = step_of(prompts, num_kv_heads=num_kv_heads, head_dim=head_dim)
    num_tokens = sum(size for _, size in prompts)
    sizes = (num_kv_heads * group, num_kv_heads, num_kv_heads)
    inputs = inputs_of(num_tokens, sizes, head_dim, seed)
    tiled = layout.to(CPU, TiledRows(layout.contexts, CPU))
    return [attended(cache, each, inputs, **options) for each in (layout, tiled)]


@settings(max_examples=15, deadline=None)
@given(
    prompts=st.lists(st.tuples(st.sampled_from([0, 0, 3, 31, 70]), st.integers(1, 40)), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (2, 3), (1, 8)]),
    head_dim=st.sampled_from([16, 24]),
    window=st.sampled_from([None, None, 7, 60]),
    softcap=st.sampled_from([None, None, 2.0]),
    seed=st.integers(0, 1000),
)
def test_chunks_attend_as_by_torchs_operators(
    prompts: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
    softcap: float | None,
    seed: int,
) -> None:
    plain, tiled = both_ways(prompts, heads, head_dim, seed=seed, scaling=0.3, sliding_window=window, softcap=softcap)
    torch.testing.assert_close(tiled, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "head_dim"), [((1, 5), 64), ((2, 2), 128), ((1, 1), 160), ((1, 1), 264), ((1, 40), 8)]
)
def test_heads_of_all_sizes_are_served(heads: tuple[int, int], head_dim: int) -> None:
    plain, tiled = both_ways([(37, 3), (0, 29)], heads, head_dim)
    torch.testing.assert_close(tiled, plain, rtol=1e-5, atol=1e-5)


def test_what_lies_behind_a_context_is_not_read() -> None:
    """Blocks are reused: what another sequence left behind the last token may be anything."""
    cache, layout = step_of([(5, 6)], num_kv_heads=1, head_dim=16, block_size=8)
    inputs = inputs_of(6, (1, 1, 1), 16, seed=2)
    tiled = layout.to(CPU, TiledRows(layout.contexts, CPU))
    expected = attended(cache, tiled, inputs)
    last = int_list(layout.blocks)[-1]
    cache.tensors[0][last, :, :, 11 % 8 :] = torch.nan
    cache.tensors[0][0] = torch.nan  # the padding block, which ends the table
    assert torch.equal(attended(cache, tiled, inputs), expected)


def test_long_contexts_come_first_and_every_row_has_one_tile() -> None:
    counts = [100, 1, 7, 64]
    lengths = np.concatenate([np.arange(300 * i, 300 * i + count) + 1 for i, count in enumerate(counts)])
    sequences = np.repeat(np.arange(4), counts)
    rows = TiledRows(contexts_of(lengths, sequences, num_blocks=4), CPU)
    _singles, chunks = rows.tiles(num_kv_heads=1, group=4, chunk_rows=128)
    starts, sizes = int_list(chunks.starts), int_list(chunks.counts)
    covered = sorted(row for start, size in zip(starts, sizes, strict=True) for row in range(start, start + size))
    assert covered == [*range(100), *range(101, 172)]
    assert max(sizes) == chunks.size == 32
    ordered: list[int] = lengths[starts].tolist()
    assert ordered == sorted(ordered, reverse=True)
    assert int_list(chunks.sequences) == sequences[starts].tolist()


def contexts_of(lengths: IntArray, sequences: IntArray, *, num_blocks: int) -> AttentionRows:
    tables = np.zeros((int(sequences.max()) + 1, num_blocks), dtype=np.int64)
    rows = np.arange(len(lengths))
    return AttentionRows(rows=rows, sequences=sequences, lengths=lengths, tables=tables, num_tokens=0)


class Builds:
    """Which kernels a GPU would be asked for, each of which is compiled when it is first met."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._binders: dict[Any, Any] = {}

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
        """In place of `paged_kernels.launch`."""
        del grid
        if kernel not in self._binders:
            known = {name: given for name, given in kernel.kwargs.items() if name.startswith("do_not_specialize")}
            built = _JIT.JITFunction(kernel.fn, **known)
            backend = _COMPILER.make_backend(_BACKENDS.GPUTarget("cuda", 90, 32))
            bind = _JIT.create_function_from_signature(built.signature, built.params, backend)
            self._binders[kernel] = bind
        options = {"debug": False, "instrumentation_mode": ""}
        _, key, chosen = self._binders[kernel](*arguments, **constants, **options)
        self.seen.add(f"{kernel.fn.__name__} {key} {chosen}")


def test_no_length_of_a_prompt_and_no_company_asks_for_a_new_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it took a kernel for each way in which a step's arrays happen to lie, compiled while requests waited."""
    builds = Builds()
    monkeypatch.setattr(paged_kernels, "launch", builds.launch)
    monkeypatch.setattr(chunk_kernels, "launch", builds.launch)
    cache = KvCache(
        (LayerShape(num_kv_heads=8, head_dim=64),), num_blocks=2, block_size=16, dtype=torch.bfloat16, device=CPU
    )

    def run(rows: list[tuple[int, int]]) -> None:
        lengths = np.concatenate([np.arange(past, past + size) + 1 for past, size in rows])
        sequences = np.repeat(np.arange(len(rows)), [size for _, size in rows])
        tiles = TiledRows(contexts_of(lengths, sequences, num_blocks=-(-int(lengths.max()) // 16)), CPU)
        key = torch.empty(len(lengths), 8, 64, dtype=torch.bfloat16).transpose(0, 1)
        query = torch.empty(len(lengths), 32, 64, dtype=torch.bfloat16).transpose(0, 1)
        blocks = torch.zeros(len(lengths), dtype=torch.int64)
        paged_kernels.store(key, key, cache.tensors[0], blocks, blocks)
        chunk_kernels.attend_rows(query, cache.layers[0], tiles, scaling=None, window=None, softcap=None)

    for num_rows in (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 64):
        run([(0, 1)] * num_rows)
    run([(0, 256)])
    warm = set(builds.seen)
    for size in range(257, 4000, 371):
        for past in (0, 16, 4099):
            for streams in (0, 1, 5, 16):
                run([*[(300 + i, 1) for i in range(streams)], (past, size)])
    assert builds.seen == warm


@pytest.mark.parametrize("dim", [16, 64, 80, 128, 256, 576])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tiles_are_sizes_that_triton_takes(dim: int, dtype: torch.dtype) -> None:
    tile = chunk_kernels.chunk_tile(dim, dtype)
    assert all(n & (n - 1) == 0 for n in (tile.rows, tile.keys, tile.warps))
    assert min(tile.rows, tile.keys) >= 16


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_after_the_warm_up_no_step_asks_for_a_new_kernel(
    name: str,
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., TransformersModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def always(_device: torch.device) -> bool:
        return True

    model = load_tiny(model_folder(name), cuda_graph_rows=0, kv_cache_bytes=64 << 20)
    monkeypatch.setattr("sixfold.plugins.llm.decoder.has_kernels", always)
    loaded: Any = getattr(model, "_decoder")  # noqa: B009
    decoder = Decoder(getattr(loaded, "_model"), loaded.cache)  # noqa: B009
    builds = Builds()
    monkeypatch.setattr(paged_kernels, "launch", builds.launch)
    monkeypatch.setattr(chunk_kernels, "launch", builds.launch)

    decoder.warm_up(200)

    warm = set(builds.seen)
    for num_rows in (1, 2, 9, 33, 65, 66, 70, 133, 200):
        assert decoder.run([[0]] * num_rows) is not None
        assert decoder.run([[0] * 3] * num_rows, (2, 1)) is not None
    for size in (2, 3, 17, 66, 130):
        assert decoder.run([[0] * size, [0] * size]) is not None
        assert decoder.run([[0] * 2 * size], (size, size)) is not None
    assert builds.seen == warm
