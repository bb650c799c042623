"""An EAGLE-3 head: what it computes, on the paged cache of the model that it guesses for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from sixfold.core.runtime.rms_norms import OneCallRMSNorm
from sixfold.core.runtime.step_linear import StepLinear
from sixfold.plugins.llm.attention import PagedStep, paged_attention
from sixfold.plugins.llm.eagle3_files import Eagle3Files

# Typed in part.
_LLAMA: Any = modeling_llama
_EMBEDDING: Any = nn.Embedding


@dataclass(slots=True)
class _CacheLayer:
    """Which layer of the cache is the head's."""

    layer_idx: int


class Eagle3Head(nn.Module):
    """Predicts the token after next from a token and what the model, or the head itself, made of all before it.

    Its keys and values lie in the model's own blocks, as those of one more layer: so whoever finds a cached prefix finds
    the head's part of it. At place p it has read the hidden state of p and the token of p + 1.

    Args:
        files: Its weights.
        embedding: The model's, for heads without one of their own.
        layer_idx: Its layer of the cache.
        vocab_size: Of the model.
        dtype: Of the model.
        device: Of the model.

    Source: Li et al. 2025 (EAGLE-3), section 3.
    """

    def __init__(
        self,
        files: Eagle3Files,
        embedding: nn.Module,
        *,
        layer_idx: int,
        vocab_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        config = files.config
        tensors = {
            name: tensor.to(device, dtype if tensor.is_floating_point() else None)
            for name, tensor in files.tensors.items()
        }

        def linear(*names: str) -> StepLinear:
            return StepLinear(torch.cat([tensors[f"{name}.weight"] for name in names]), None)

        def norm(name: str) -> OneCallRMSNorm:
            return OneCallRMSNorm(tensors[f"{name}.weight"], config.rms_norm_eps)

        attention = "midlayer.self_attn"
        self.fc = linear("fc")
        self.qkv = linear(f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
        self.joined = linear(f"{attention}.o_proj")
        self.gate = linear("midlayer.mlp.gate_proj")
        self.up = linear("midlayer.mlp.up_proj")
        self.down = linear("midlayer.mlp.down_proj")
        self.lm_head = linear("lm_head")
        self.token_norm = norm("midlayer.input_layernorm")
        self.hidden_norm = norm("midlayer.hidden_norm")
        self.inner_norm = norm("midlayer.post_attention_layernorm")
        self.norm = norm("norm")
        self.rotary = _LLAMA.LlamaRotaryEmbedding(config).to(device)
        own = tensors.get("embed_tokens.weight")
        self._embedding = (embedding if own is None else _EMBEDDING.from_pretrained(own),)  # not registered twice
        self._norms_first = files.norms_first
        self._cache_layer = _CacheLayer(layer_idx)
        self._sizes: tuple[int, int, int] = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self._vocab_size = vocab_size
        offsets = tensors.get("d2t")
        self._targets = None if offsets is None else offsets + torch.arange(len(offsets), device=device)

    def fuse(self, features: Tensor) -> Tensor:
        """[tokens, 3 * model dim] of the model to [tokens, dim], where the head's own hidden states are."""
        fused: Tensor = self.fc(features)
        return fused

    def forward(self, token_ids: Tensor, position_ids: Tensor, hidden: Tensor, step: PagedStep) -> Tensor:
        """One pass over rows of the cache.

        Args:
            token_ids: [1, tokens], each the one after its place.
            position_ids: [1, tokens], the places.
            hidden: [tokens, dim] from `fuse`, or from this function at the place before.
            step: As for the model's layers.

        Returns:
            [tokens, dim]: the residual stream, for `logits` and for the next place.
        """
        embedded: Tensor = self._embedding[0](token_ids)[0]
        normed = self.hidden_norm(hidden)
        residual = normed if self._norms_first else hidden
        inputs = torch.cat((self.token_norm(embedded.to(hidden.dtype)), normed), dim=-1)
        residual = residual + self.joined(self._attend(inputs, position_ids, step))
        inner = self.inner_norm(residual)
        result: Tensor = self.down(F.silu(self.gate(inner)) * self.up(inner), residual)
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, dim] to [rows, vocabulary of the model]; minus infinity for what the head does not know."""
        drafted: Tensor = self.lm_head(self.norm(hidden))
        if self._targets is None:
            return drafted
        result = drafted.new_full((len(drafted), self._vocab_size), -torch.inf)
        return result.index_copy_(1, self._targets, drafted)

    def _attend(self, inputs: Tensor, position_ids: Tensor, step: PagedStep) -> Tensor:
        num_heads, num_kv_heads, dim = self._sizes
        heads = self.qkv(inputs).view(len(inputs), -1, dim).transpose(0, 1).unsqueeze(0)
        query, key, value = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
        cosine, sine = self.rotary(inputs, position_ids)
        query, key = _LLAMA.apply_rotary_pos_emb(query, key, cosine, sine)
        attended, _ = paged_attention(
            self._cache_layer, query, key.contiguous(), value.contiguous(), None, scaling=dim**-0.5, paged_step=step
        )
        return attended.reshape(len(inputs), -1)
