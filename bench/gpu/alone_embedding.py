"""Embeddings: each optimisation of a step alone, and on top of the others, in turns; see `alone.py`."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from alone_timing import Notes, Way, interleave
from alone_traffic import measure_traffic
from embedding import DATA, STEP_TOKENS, VOCABULARY, save, shapes
from torch import Tensor

PAIRS = (
    ("packed", "padded", "stock"),
    ("graphs", "stock", "stock graphs"),
    ("attention", "stock", "stock attention"),
    ("layers", "stock", "layers"),
    ("graphs", "layers attention", "layers attention graphs"),
    ("attention", "layers graphs", "layers attention graphs"),
    ("layers", "stock attention graphs", "layers attention graphs"),
    ("rotation", "without rotation", "layers attention graphs"),
    ("gate", "without gate", "layers attention graphs"),
    ("norm", "without norm", "layers attention graphs"),
)
"""Optimisation, without it, with it. "stock": stock layers, packed, FlashAttention by lengths, computed."""


class FlashByLengths:
    """Stands for the own kernel: torch's FlashAttention over sequences laid end to end, on a CPU one by one."""

    def __init__(self, lengths: Sequence[int], device: str) -> None:
        self._ends = np.cumsum([0, *sorted(lengths)]).tolist()  # a batch is sorted
        self._bounds = torch.tensor(self._ends, device=device, dtype=torch.int32)
        self._longest = max(lengths)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _spans: Any,
        *,
        scaling: float,
        causal: bool = False,
        window: Any = None,
    ) -> Tensor:
        assert window is None
        if query.is_cuda:
            flash: Any = torch.ops.aten._flash_attention_forward
            bounds, longest = self._bounds, self._longest
            return flash(query, key, value, bounds, bounds, longest, longest, 0.0, causal, False, scale=scaling)[0]
        output = torch.empty_like(query)
        for start, end in zip(self._ends, self._ends[1:], strict=False):
            rows = [each[start:end].transpose(0, 1)[None] for each in (query, key, value)]
            gqa = query.shape[1] != key.shape[1]
            found = F.scaled_dot_product_attention(*rows, is_causal=causal, scale=scaling, enable_gqa=gqa)
            output[start:end] = found[0].transpose(0, 1)
        return output


def _rotate(qkv: Tensor, cos: Tensor, sin: Tensor, *, num_heads: int, num_kv_heads: int, norms: Any) -> None:
    """`rotate_heads` by torch's operators."""
    count = num_heads + num_kv_heads
    heads = qkv.view(len(qkv), -1, cos.shape[1])[:, :count]
    found = heads
    if norms is not None:
        parts = heads.split([num_heads, num_kv_heads], dim=1)
        weights = (norms.query, norms.key)
        found = torch.cat(
            [F.rms_norm(part, (part.shape[-1],), each, norms.eps) for part, each in zip(parts, weights, strict=True)],
            dim=1,
        )
    first, second = found.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    heads.copy_(found * cos[:, None] + turned * sin[:, None])


def _gate(opened: Tensor, x: Tensor, eps: float) -> Tensor:
    """`silu_gate` by torch's operators."""
    factor = torch.rsqrt(x.float().square().mean(dim=-1, keepdim=True) + eps).to(x.dtype)
    gate, up = (opened * factor).chunk(2, dim=-1)
    return F.silu(gate) * up


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[1],), weight, eps)


def _add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x + residual, (x.shape[1],), weight, bias, eps)


STANDS = {
    "rotation": {"rotate_heads": _rotate},
    "gate": {"silu_gate": _gate},
    "norm": {"rms_norm": _norm, "add_layer_norm": _add_norm},
}


@contextlib.contextmanager
def standing(module: Any, stands: dict[str, Any]) -> Generator[None]:
    """Other functions in a module's names inside."""
    kept = {name: getattr(module, name) for name in stands}
    for name, stand in stands.items():
        setattr(module, name, stand)
    try:
        yield
    finally:
        for name, own in kept.items():
            setattr(module, name, own)


class Forwards:
    """The ways of one model, built once; `ways` makes them for a batch.

    Args:
        folder: Of sentence-transformers.
        device: Where.
    """

    def __init__(self, folder: Path, device: str) -> None:
        from sixfold.plugins.embedding import gpu_layers
        from sixfold.plugins.embedding.attention import PackedAttention
        from sixfold.plugins.embedding.pipeline import Pipeline

        self._device = device
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self._padded = Pipeline(folder, device, dtype)
        self._models: dict[str, tuple[Any, Any]] = {}
        for name in ("stock", "layers"):
            transformer, attention = Pipeline(folder, device, dtype).transformer, PackedAttention()
            if name == "layers":
                assert gpu_layers.fuse_layers(transformer, attention), "no layer has a known form"
            transformer.set_attn_implementation(attention.name)
            transformer.config.use_cache = False
            self._models[name] = transformer, attention

    def ways(self, lengths: Sequence[int]) -> dict[str, Way]:
        """By name; a graph is of exactly so many rows."""
        from sixfold.plugins.embedding import attention, gpu_layers
        from sixfold.plugins.embedding.forward import GroupedForward

        batch = [np.random.default_rng(i).integers(4, VOCABULARY, n) for i, n in enumerate(lengths)]
        flash = {"_by_spans": FlashByLengths(lengths, self._device)}

        def way(layers: str, *, own: bool, graph: bool, stands: dict[str, Any] | None = None) -> Way:
            @contextlib.contextmanager
            def switch() -> Generator[None]:
                with standing(attention, {} if own else flash), standing(gpu_layers, stands or {}):
                    yield

            forward = self._forward(layers, sum(lengths) if graph else 0, switch)
            return Way(lambda: forward(batch), switch)

        grouped = GroupedForward(self._padded.transformer, self._padded.pad_token_id, mode="stock")
        found = {"padded": Way(lambda: grouped(batch))}
        for layers in ("stock", "layers"):
            for own in (False, True):
                for graph in (False, True):
                    name = " ".join([layers, *["attention"] * own, *["graphs"] * graph])
                    found[name] = way(layers, own=own, graph=graph)
        for name, stands in STANDS.items():
            found[f"without {name}"] = way("layers", own=True, graph=True, stands=stands)
        return found

    def _forward(self, layers: str, graph_rows: int, switch: Callable[[], Any]) -> Any:
        from sixfold.core.runtime.cuda_graphs import capture_cuda_graph
        from sixfold.plugins.embedding import flat_forward

        forward = flat_forward.FlatForward(*self._models[layers], mode=layers)
        if graph_rows:
            capture = capture_cuda_graph(forward.device) if forward.device.type == "cuda" else _computed
            with switch(), standing(flat_forward, {"graph_sizes": lambda rows: [rows]}):
                forward.record(graph_rows, capture)
            assert forward._replays, "the model can't be recorded"
        return forward


def _computed(call: Callable[[], None]) -> Callable[[], None]:
    """In place of a recording, on a CPU."""
    call()
    return call


def skewed(lengths: Sequence[int], step_tokens: int) -> list[int]:
    """The first lengths, the last cut so that they fill a step."""
    found: list[int] = []
    for length in lengths:
        found.append(min(length, step_tokens - sum(found)))
        if sum(found) == step_tokens:
            break
    return found


@torch.inference_mode()
def measure_step(notes: Notes, name: str, folder: Path, *, tiny: bool, lengths: Sequence[int]) -> None:
    """Steps of 4,096 tokens of equal and of skewed lengths, the forward alone, back to back."""
    device, tokens = ("cpu", 16) if tiny else ("cuda:0", STEP_TOKENS)
    forwards = Forwards(folder, device)
    kinds = {"skewed": skewed([5, 3, 12] if tiny else lengths, tokens)}
    if not tiny:
        kinds = {"of 512 tokens": [512] * (tokens // 512), **kinds}
    for kind, those in kinds.items():
        ways = forwards.ways(those)
        found = interleave(ways, rounds=1 if tiny else 7, calls=1 if tiny else 10, warms=not tiny)
        place = f"{name}, {len(those)} texts, {kind}"
        notes.keep(place, found)
        used = [pair for pair in PAIRS if pair[0] not in STANDS or _uses(pair[0], name)]
        notes.pairs(place, found, [(f"embedding.{key}", off, on) for key, off, on in used])
        _compare(ways)


def _uses(stand: str, name: str) -> bool:
    """Whether the shape's layers have the kernel: BERT's have no rotation and no gate."""
    return stand == "norm" or name.startswith("qwen")


def _compare(ways: dict[str, Way]) -> None:
    """Says how far each is from the padded library's modules."""
    with torch.inference_mode():
        expected = ways["padded"].run()[0].float()  # type: ignore[index]
        for name, way in ways.items():
            with way.switch():
                found = way.run()[0].float()  # type: ignore[index]
            away = 1 - F.cosine_similarity(found, expected).min()
            print(f"{name}: greatest distance of a token {away.item():.1e}", flush=True)


def measure(
    notes: Notes, *, tiny: bool, names: Sequence[str] = ("qwen3-0.6b", "bge-large"), parts: Sequence[str]
) -> None:
    """Steps of some shapes, and the traffic of the first."""
    lengths = [max(3, count) for _, count in json.loads(DATA.read_text())][:800]
    for name in names if "steps" in parts else names[:1]:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        save(folder, shapes(tiny)[name])
        if "steps" in parts:
            measure_step(notes, name, folder / "saved", tiny=tiny, lengths=lengths)
        if not tiny:
            torch.cuda.empty_cache()
        if "traffic" in parts and name == names[0]:
            measure_traffic(notes, name, folder / "saved", tiny=tiny, lengths=lengths)
