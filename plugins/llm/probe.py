"""Finds out what a decoder asks of its attention function, and refuses what the paged one would get wrong.

A model is judged by what it does, not by its name: one tiny forward pass with a recording attention function shows the
shape of every layer's cache and every unusual argument; a comparison with the stock model then proves the whole path.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.attention import PAGED_STEP, AttentionLayer
from sixfold.plugins.llm.kv_cache import LayerShape

PROBE_ATTENTION = "sixfold_probe"
"""Name of the recording function in transformers' table of attention functions."""


class OtherLogits(ConfigError):
    """The finished runtime does not compute what the stock model computes."""


# Arguments of attention functions that say nothing beyond what the paged function knows already.
_HARMLESS = frozenset(
    {
        "cache_position",
        "dropout",
        "layer_idx",
        "logits_to_keep",  # of the head; some models hand it down
        "past_key_value",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "scaling",
        "sliding_window",
        "softcap",
        "use_cache",
    }
)


@dataclass(slots=True)
class AttentionCalls:
    """What the recording function saw, in order. Travels where a `PagedStep` will."""

    layers: list[int] = field(default_factory=lambda: [])
    shapes: list[LayerShape] = field(default_factory=lambda: [])
    unsupported: list[str] = field(default_factory=lambda: [])


def record_attention(
    module: AttentionLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged_step: AttentionCalls,
    **arguments: object,
) -> tuple[Tensor, None]:
    """Notes the call and returns zeros of the right shape."""
    paged_step.layers.append(module.layer_idx)
    paged_step.shapes.append(LayerShape(num_kv_heads=key.shape[1], head_dim=key.shape[3]))
    if attention_mask is not None:
        paged_step.unsupported.append("a mask of its own")
    if key.shape != value.shape:
        paged_step.unsupported.append("keys and values of different size")
    if not getattr(module, "is_causal", True) or arguments.pop("is_causal", True) is False:
        paged_step.unsupported.append("attention to later tokens")
    paged_step.unsupported.extend(
        f"the attention argument {name!r}"
        for name, given in arguments.items()
        if name not in _HARMLESS and not name.startswith("output_") and given is not None
    )
    return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3])), None


def probe_layers(model: nn.Module, *, num_layers: int, model_name: str) -> tuple[LayerShape, ...]:
    """The cache shape of every layer.

    Args:
        model: A decoder whose attention function is `PROBE_ATTENTION`.
        num_layers: What its config says.
        model_name: For messages.

    Raises:
        ConfigError: The decoder needs something that the paged cache can't give.
    """
    calls = AttentionCalls()
    device = next(model.parameters()).device
    tokens = torch.zeros((1, 2), dtype=torch.int64, device=device)
    positions = torch.arange(2, device=device).unsqueeze(0)
    refusal = f"models.{model_name}: {type(model).__name__} can't run on the paged cache yet: "
    advice = " Use another model or another family."
    try:
        with torch.inference_mode():
            model(input_ids=tokens, position_ids=positions, use_cache=False, **{PAGED_STEP: calls})
    except TypeError as error:
        raise ConfigError(f"{refusal}its layers do not pass arguments on to attention.{advice}") from error
    if calls.unsupported:
        raise ConfigError(f"{refusal}it uses {', '.join(dict.fromkeys(calls.unsupported))}.{advice}")
    if calls.layers != list(range(num_layers)):
        raise ConfigError(f"{refusal}{len(set(calls.layers))} of its {num_layers} layers use plain attention.{advice}")
    return tuple(calls.shapes)


def check_agreement(reference: Tensor, logits: Tensor, *, dtype: torch.dtype, model_name: str, class_name: str) -> None:
    """Compares logits of the finished runtime with those of the stock model.

    Args:
        reference: [vocabulary] of the stock model.
        logits: [vocabulary] of the finished runtime, for the same tokens.
        dtype: Of the weights; decides the tolerance.
        model_name: For messages.
        class_name: For messages.

    Raises:
        OtherLogits: They differ by more than rounding.
    """
    reference = reference.float()
    error = float((logits.float() - reference).square().sum().sqrt() / reference.square().sum().sqrt())
    limit = 1e-3 if dtype is torch.float32 else 0.1
    if not error <= limit:
        raise OtherLogits(
            f"models.{model_name}: {class_name} gives other logits on the paged cache than by itself (relative "
            f"difference {error:.2g}, allowed {limit}). Try options.compute_packed: false, or another family."
        )
