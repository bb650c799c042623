"""The kernels for GPUs, run by Triton's interpreter, give what plain attention and stock models give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels for GPUs need Triton")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.plugins.llm import paged_kernels, step_graphs
from sixfold.plugins.llm.cache_policy import CacheScheme
from sixfold.plugins.llm.chunk_kernels import attend_rows
from sixfold.plugins.llm.kv_layer import PlainLayer, dequantize, make_layer, quantize
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.rows import AttentionRows
from sixfold.plugins.llm.tensors import int_list
from sixfold.plugins.llm.text_codec import TextCodec
from sixfold.plugins.llm.tiled_rows import TiledRows, num_splits
from tests.plugins.llm import vision_models
from tests.plugins.llm.test_greedy_equals_generate import generate, greedy, prompts_of, tokens_of

BLOCK_SIZE = 4
CPU = torch.device("cpu")


def plain_attention(
    query: Tensor,
    cache: Tensor,
    table: list[int],
    length: int,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """[heads, dim] of one row, in float64."""
    group = query.shape[0] // cache.shape[2]
    first = 0 if window is None else max(0, length - window)
    places = [(table[p // BLOCK_SIZE], p % BLOCK_SIZE) for p in range(first, length)]
    key, value = (
        torch.stack([cache[block, which, :, offset] for block, offset in places], 1)
        .double()
        .repeat_interleave(group, 0)
        for which in (0, 1)
    )
    scores = torch.einsum("hd,hkd->hk", query.double(), key) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.einsum("hk,hkd->hd", scores.softmax(-1), value)


@settings(max_examples=12, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 70)), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (2, 3), (2, 8)]),
    head_dim=st.sampled_from([16, 24]),
    window=st.sampled_from([None, 7, 65]),
    softcap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 1000),
)
def test_rows_attend_to_their_context_in_the_cache_as_plain_attention_does(
    chunks: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
    softcap: float | None,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_kv_heads, group = heads
    contexts = [(max(context, rows), rows) for context, rows in chunks]
    max_blocks = -(-max(context for context, _ in contexts) // BLOCK_SIZE)
    num_blocks = 1 + len(contexts) * max_blocks
    cache = torch.randn((num_blocks, 2, num_kv_heads, BLOCK_SIZE, head_dim), generator=generator)
    tables = 1 + torch.randperm(num_blocks - 1, generator=generator).view(len(contexts), max_blocks)
    sequences = torch.tensor([i for i, (_, rows) in enumerate(contexts) for _ in range(rows)])
    lengths = torch.cat([torch.arange(context - rows, context) + 1 for context, rows in contexts])
    query = torch.randn((len(lengths), num_kv_heads * group, head_dim), generator=generator).transpose(0, 1)
    rows = TiledRows(
        AttentionRows(
            rows=torch.arange(len(lengths)).numpy(),
            sequences=sequences.numpy(),
            lengths=lengths.numpy(),
            tables=tables.numpy(),
            num_tokens=int(lengths.sum()),
        ),
        CPU,
    )

    output = attend_rows(query, PlainLayer(cache), rows, scaling=0.3, window=window, softcap=softcap)

    for row, (sequence, length) in enumerate(zip(int_list(sequences), int_list(lengths), strict=True)):
        expected = plain_attention(query[:, row], cache, int_list(tables[sequence]), length, 0.3, window, softcap)
        torch.testing.assert_close(output[row].double(), expected, rtol=1e-5, atol=1e-5)


def test_keys_and_values_go_to_their_places_and_nowhere_else() -> None:
    cache = torch.zeros((3, 2, 2, BLOCK_SIZE, 24))
    key = torch.randn(3, 2, 24).transpose(0, 1)
    value = torch.randn(3, 2, 24).transpose(0, 1)
    blocks, offsets = torch.tensor([2, 1, 1]), torch.tensor([3, 0, 2])

    paged_kernels.store(key, value, cache, blocks, offsets)

    expected = torch.zeros_like(cache)
    expected[blocks, 0, :, offsets] = key.transpose(0, 1)
    expected[blocks, 1, :, offsets] = value.transpose(0, 1)
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("scheme", ["fp8", "int8"])
def test_over_bytes_they_write_and_read_what_the_portable_layer_does(scheme: CacheScheme) -> None:
    generator = torch.Generator().manual_seed(5)
    num_tokens, window, shape = 11, 7, {"num_kv_heads": 2, "block_size": BLOCK_SIZE, "head_dim": 24}
    layer: Any = make_layer(5, **shape, dtype=torch.float32, scheme=scheme, device=CPU)
    table = torch.tensor([[3, 1, 4]])
    positions = torch.arange(num_tokens)
    blocks, offsets = table[0, positions // BLOCK_SIZE], positions % BLOCK_SIZE
    key, value = torch.randn((2, num_tokens, 2, 24), generator=generator).transpose(1, 2)
    key[0, 1] = 0
    key[1, 2, 1:] *= 1e-4  # smaller than the least exponent of e4m3
    paged_kernels.store(key, value, layer.tensor, blocks, offsets, block_size=BLOCK_SIZE, scheme=scheme)

    held = dequantize(layer.numbers, layer.scales, scheme)
    for side, given_side in enumerate((key, value)):
        expected = dequantize(*quantize(given_side, scheme), scheme)
        torch.testing.assert_close(held[blocks, side, :, offsets], expected.transpose(0, 1), rtol=1e-6, atol=0)
    assert not held[[0, 2]].any()
    query = torch.randn((num_tokens, 4, 24), generator=generator).transpose(0, 1)
    contexts = AttentionRows(
        rows=positions.numpy(),
        sequences=torch.zeros(num_tokens, dtype=torch.int64).numpy(),
        lengths=(positions + 1).numpy(),
        tables=table.numpy(),
        num_tokens=66,
    )
    rows = TiledRows(contexts, CPU)
    output = attend_rows(query, layer, rows, scaling=0.3, window=window, softcap=None)
    for row in range(num_tokens):
        expected = plain_attention(query[:, row], held, int_list(table[0]), row + 1, 0.3, window, None)
        torch.testing.assert_close(output[row].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["fp8", "int8"])
def test_over_bytes_what_is_no_number_shows_in_its_scale(scheme: CacheScheme) -> None:
    layer: Any = make_layer(
        1, num_kv_heads=1, block_size=BLOCK_SIZE, head_dim=24, dtype=torch.float32, scheme=scheme, device=CPU
    )
    key, value = torch.ones((2, 1, 3, 24))
    key[0, 1, 5], value[0, 2, 6] = torch.nan, torch.inf
    blocks, offsets = torch.zeros(3, dtype=torch.int64), torch.arange(3)
    paged_kernels.store(key, value, layer.tensor, blocks, offsets, block_size=BLOCK_SIZE, scheme=scheme)
    assert layer.scales.isfinite()[0, :, 0, :3].tolist() == [[True, False, True], [True, True, False]]


@given(num_tiles=st.integers(1, 5000), num_kv_heads=st.integers(1, 128))
def test_contexts_are_cut_only_while_programs_are_few(num_tiles: int, num_kv_heads: int) -> None:
    splits = num_splits(num_tiles, num_kv_heads)
    assert splits & (splits - 1) == 0
    assert splits == 1 or splits * num_tiles * num_kv_heads <= 264


@given(max_rows=st.integers(1, 4096))
def test_a_step_is_padded_by_few_rows(max_rows: int) -> None:
    sizes = step_graphs.row_counts(max_rows)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_rows
    assert all(next(s for s in sizes if s >= n) - n <= max(7, n // 7) for n in range(1, max_rows + 1))


@pytest.fixture
def on_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models on the CPU attend by the kernels, too; a replay runs the recorded call again."""

    def always(_device: torch.device) -> bool:
        return True

    def recorder(_device: torch.device) -> Capture:
        return lambda call: call

    monkeypatch.setattr("sixfold.plugins.llm.decoder.has_kernels", always)
    monkeypatch.setattr("sixfold.plugins.llm.decoder.capture_cuda_graph", recorder)
    monkeypatch.setattr("sixfold.plugins.llm.decoder._WARM_UP_ROWS", (1,))
    monkeypatch.setattr("sixfold.plugins.llm.decoder._WARM_UP_PROMPT_TOKENS", 4)
    monkeypatch.setattr("sixfold.plugins.llm.decoder._WARM_UP_TILED_ROWS", ())
    monkeypatch.setattr("sixfold.plugins.llm.decoder._WARM_UP_TILED_TOKENS", 4)


@pytest.mark.usefixtures("on_kernels")
@pytest.mark.parametrize(
    ("name", "graph_rows"),
    [("llama", 0), *(pytest.param(name, 12, marks=pytest.mark.slow) for name in ("llama", "gemma2"))],
)
def test_models_on_the_kernels_answer_as_generate_does(
    name: str,
    graph_rows: int,
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., TransformersModel],
    driver: Any,
) -> None:
    folder = model_folder(name)
    prompts = prompts_of(3, 3)
    codec = TextCodec.load(folder)
    model = load_tiny(folder, cuda_graph_rows=graph_rows)
    model.warm_up()

    answers = driver(model, seed=1).run([greedy(prompt, 4) for prompt in prompts])

    expected = generate(folder, prompts, 4)
    assert [tokens_of(each) for each in answers] == [[codec.token_bytes(t) for t in answer] for answer in expected]


@pytest.mark.usefixtures("on_kernels")
def test_models_with_a_cache_of_bytes_answer_as_without_the_kernels(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., TransformersModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = {"scheme": "fp8", "what": "kv_cache"}
    found = [load_tiny(model_folder("llama"), quantization=policy)]

    def never(_device: torch.device) -> bool:
        return False

    monkeypatch.setattr("sixfold.plugins.llm.decoder.has_kernels", never)
    found.append(load_tiny(model_folder("llama"), quantization=policy))
    logits = [getattr(model, "_decoder").run([list(range(40))], (25, 14, 1)) for model in found]  # noqa: B009
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("on_kernels")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["smolvlm", "qwen2-vl"])
def test_images_are_read_on_the_kernels_too(
    name: str, tmp_path: Path, load_tiny: Callable[..., TransformersModel], driver: Any
) -> None:
    folder = vision_models.write_vision_model(tmp_path, name)
    codec = TextCodec.load(folder)
    image = vision_models.picture(2)
    model = load_tiny(folder, cuda_graph_rows=12)
    model.warm_up()

    asked = [vision_models.look("And ", vision_models.part(image), num_tokens=4), vision_models.look("b", num_tokens=4)]
    answers = driver(model, seed=1).run(asked)
    model.close()

    expected = [
        vision_models.generate(folder, vision_models.rendered("And ", image), [image], 4),
        vision_models.generate(folder, vision_models.rendered("b"), [], 4),
    ]
    assert [tokens_of(each) for each in answers] == [[codec.token_bytes(t) for t in answer] for answer in expected]
