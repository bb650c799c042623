"""A long prompt of a Llama-shaped decoder over several GPUs, handed over to decoding in the first; part of multi.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from multi_shapes import TOLERANCE, relative_error

_NOISE = 1.5  # times what another kernel makes of the same prompt on one GPU


@dataclass(frozen=True, kw_only=True)
class PrefillShape:
    """A decoder and a prompt.

    Attributes:
        name: For the table.
        config: Fields of a LlamaConfig.
        prompt_tokens: Of the prompt.
        chunk_tokens: That a step takes of it.
        dtype: Of weights and cache.
    """

    name: str
    config: dict[str, int]
    prompt_tokens: int
    chunk_tokens: int
    dtype: str = "bfloat16"

    @property
    def num_chunks(self) -> int:
        """Steps of the prompt."""
        return self.prompt_tokens // self.chunk_tokens

    @property
    def chunks(self) -> list[int]:
        """Tokens of each step: the prompt's, then a few that are decoded one by one."""
        return [self.chunk_tokens] * self.num_chunks + [1] * 4


def prefill_shape(tiny: bool, *, exact: bool) -> PrefillShape:
    """Llama 3 8B and a prompt of 128k tokens; for equality four of its layers in float32 and a short one."""
    num_layers = 4 if exact else 32
    real = {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": num_layers, "vocab_size": 128_256}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 1 << 18}
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 100}
    few = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    if exact and not tiny:
        name = "four layers of Llama 3 8B, prompt of 8k tokens, float32"
        return PrefillShape(
            name=name, config={**real, **heads}, prompt_tokens=1 << 13, chunk_tokens=1 << 11, dtype="float32"
        )
    return PrefillShape(
        name="Llama 3 8B, prompt of 128k tokens, bfloat16",
        config={**small, **few} if tiny else {**real, **heads},
        prompt_tokens=256 if tiny else 1 << 17,
        chunk_tokens=64 if tiny else 1 << 14,
        dtype="float32" if tiny else "bfloat16",
    )


class Orders:
    """Stands for the leader: rank 0's orders are broadcast, and all ranks run the same modules."""

    def __init__(self, mesh: Any, modules: Any) -> None:
        self.degrees = mesh.degrees
        self._mesh = mesh
        self._modules = modules

    def run(self, function: Any, parts: Sequence[Any]) -> list[Any]:
        self._broadcast(parts[0])
        return [self._modules.run(self._modules.name_of(function), parts[0])]

    def follow(self) -> None:
        """Computes what is ordered, to the end."""
        while (arguments := self._broadcast(None)) is not None:
            self._modules.run("decoder", arguments)

    def end(self) -> None:
        self._broadcast(None)

    def _broadcast(self, value: Any) -> Any:
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._mesh.control.handle)
        return values[0]


def share_prefill(
    ranks: Any, splits: Callable[[int], dict[str, Any]], tiny: bool, keep: Callable[[Any], None], *, exact: bool
) -> None:
    """Seconds of the prompt alone and in each way of sharing it, and how far the logits behind a few decoded tokens are apart."""
    import torch

    shape = prefill_shape(tiny, exact=exact)
    decoder, model = _decoder(shape, ranks.device, keeps=ranks.leads)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, shape.config["vocab_size"], (sum(shape.chunks),), generator=generator).tolist()
    tolerance = TOLERANCE[shape.dtype]
    found: dict[str, Any] = {"shape": shape.name, "rows": 1, "tolerance": tolerance, "ways": []}
    expected = before = None
    if ranks.leads:
        found["alone_s"], expected = _timed(decoder, tokens, shape, ranks)
        ranks.say(f"{shape.name}: alone {found['alone_s']:.2f} s")
        keep(found)
        if not exact:
            found["other_kernels"] = _kernel_noise(decoder, tokens, shape, expected)
            # Many layers of bfloat16 round more than one call of a transformer does: what one GPU does by itself is allowed.
            found["tolerance"] = tolerance = max(
                [tolerance, *(_NOISE * each for each in found["other_kernels"].values())]
            )
            ranks.say(f"{shape.name}: other kernels {found['other_kernels']}, allowed {tolerance:.1e}")
            keep(found)
    for count in ranks.counts:
        for way, degrees in splits(count).items():
            mesh = ranks.join(degrees)
            if mesh is None:
                continue
            orders, end = _meet(mesh, decoder, model, shape)
            try:
                if not ranks.leads:
                    orders.follow()
                    continue
                seconds, logits = _timed(decoder, tokens, shape, ranks)
            finally:
                end()
                mesh.close()
            times, error = found["alone_s"] / seconds, relative_error(expected, logits)
            line = {"ranks": count, "way": way, "step_s": seconds, "times": times, "efficiency": times / count}
            found["ways"].append({**line, "error": error, "ok": error <= tolerance})
            if before is not None:
                found["ways"][-1]["from_the_way_before"] = relative_error(before, logits)
            before = logits
            ranks.say(f"{shape.name}: {found['ways'][-1]}")
            keep(found)


def _decoder(shape: PrefillShape, device: Any, *, keeps: bool) -> tuple[Any, Any]:
    """The model of every rank, and in the first the decoder with its cache."""
    import torch
    import transformers
    from transformers.modeling_utils import AttentionInterface

    from sixfold.plugins.llm.attention import ATTENTION, paged_attention
    from sixfold.plugins.llm.decoder import Decoder
    from sixfold.plugins.llm.divided_attention import DIVIDED_ATTENTION, divided_attention
    from sixfold.plugins.llm.kv_cache import KvCache, LayerShape

    AttentionInterface.register(ATTENTION, paged_attention)
    AttentionInterface.register(DIVIDED_ATTENTION, divided_attention)
    config = transformers.LlamaConfig(**shape.config)
    dtype = getattr(torch, shape.dtype)
    torch.manual_seed(0)
    with torch.device(device), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.02)
    model.set_attn_implementation(ATTENTION if keeps else DIVIDED_ATTENTION)
    if not keeps:
        return None, model
    layer = LayerShape(num_kv_heads=config.num_key_value_heads, head_dim=config.head_dim)
    num_blocks = sum(shape.chunks) // 16 + 8
    layers = (layer,) * config.num_hidden_layers
    return Decoder(model, KvCache(layers, num_blocks=num_blocks, block_size=16, dtype=dtype, device=device)), model


def _meet(mesh: Any, decoder: Any, model: Any, shape: PrefillShape) -> tuple[Orders, Callable[[], None]]:
    from sixfold.core.parallel.modules import RankModule, RankModules
    from sixfold.plugins.llm.divided_decoder import DividedDecoder, rows_alone
    from sixfold.plugins.llm.prefill_ranks import PrefillRanks

    if decoder is None:
        module = DividedDecoder(rows_alone(model.model), None)
        return Orders(mesh, RankModules({"decoder": RankModule(module=module, splits_itself=True)}, mesh)), lambda: None
    orders: Any = Orders(mesh, None)
    ranks = PrefillRanks(orders, decoder, min_tokens=shape.chunk_tokens // 2)
    orders._modules = RankModules({"decoder": RankModule(module=ranks.module, splits_itself=True)}, mesh)
    decoder.divide(ranks)
    return orders, orders.end


def _kernel_noise(decoder: Any, tokens: list[int], shape: PrefillShape, expected: Any) -> dict[str, float]:
    """How far one device is from itself with another kernel of attention: what rounding alone makes of these layers."""
    from prompt_ways import way

    name = "tiles" if expected.device.type == "cuda" else "torch"
    with way(name, decoder):
        return {name: relative_error(expected, decoder.run([tokens], shape.chunks))}


def _timed(decoder: Any, tokens: list[int], shape: PrefillShape, ranks: Any) -> tuple[float, Any]:
    """Seconds of the prompt's chunks, after a first one that makes kernels; and the logits behind the decoded tokens."""
    decoder.run([tokens[: shape.chunk_tokens]])
    ranks.synchronize()
    num_left, ended_s = shape.num_chunks, 0.0
    compute = decoder.forward

    def forward(*arguments: Any) -> Any:
        nonlocal num_left, ended_s
        result = compute(*arguments)
        num_left -= 1
        if num_left == 0:
            ranks.synchronize()
            ended_s = time.perf_counter()
        return result

    decoder.forward = forward
    try:
        began_s = time.perf_counter()
        logits = decoder.run([tokens], shape.chunks)
    finally:
        del decoder.forward
    return ended_s - began_s, logits
