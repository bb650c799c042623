"""An EAGLE-3 head in plain torch, over whole sequences and without any cache: the oracle, and what trains one for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.plugins.llm.lora_folders import stock_model

SAFETENSORS: Any = safetensors.torch  # typed in part
_TORCH: Any = torch

TAPS = (1, 2, 0)
"""Out of order, so that a head which joins the hidden states by depth would be found out."""


class ReferenceHead(nn.Module):
    """The published architecture, written from its description.

    Args:
        base: The stock model that it guesses for.
        drafted: The tokens that it knows, rising.
        norms_first: As in `Eagle3Files`.
    """

    def __init__(self, base: Any, drafted: list[int], *, norms_first: bool = False) -> None:
        super().__init__()
        self.base = (base,)
        self.norms_first = norms_first
        self.targets = torch.tensor(drafted)
        self.dim = dim = base.config.hidden_size
        self.num_heads, self.num_kv_heads, self.head_dim = 4, 2, 8

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)

        self.fc = weight(dim, 3 * dim)
        self.q_proj = weight(self.num_heads * self.head_dim, 2 * dim)
        self.k_proj = weight(self.num_kv_heads * self.head_dim, 2 * dim)
        self.v_proj = weight(self.num_kv_heads * self.head_dim, 2 * dim)
        self.o_proj = weight(dim, self.num_heads * self.head_dim)
        self.gate_proj, self.up_proj, self.down_proj = weight(40, dim), weight(40, dim), weight(dim, 40)
        self.lm_head = weight(len(drafted), dim)
        self.norms = nn.ParameterDict(
            {name: nn.Parameter(1 + 0.1 * torch.randn(dim)) for name in ("token", "hidden", "inner", "last")}
        )

    def features(self, token_ids: list[int]) -> Tensor:
        """[tokens, 3 * dim]: what enters the tapped layers."""
        with torch.no_grad():
            states = self.base[0](torch.tensor([token_ids]), output_hidden_states=True).hidden_states
        return torch.cat([states[tap][0] for tap in TAPS], dim=-1)

    def forward(self, token_ids: list[int], hidden: Tensor) -> Tensor:
        """The residual stream at all places; ``token_ids`` are the ones after each place, ``hidden`` what `fc` gave or this."""
        count = len(token_ids)
        embedded = self.base[0].get_input_embeddings()(torch.tensor(token_ids)).detach()
        normed = self._norm("hidden", hidden)
        x = torch.cat((self._norm("token", embedded), normed), dim=-1)
        query, key, value = (
            (x @ matrix.T).view(count, -1, self.head_dim) for matrix in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = _rotate(query), _rotate(key)
        shared = self.num_heads // self.num_kv_heads
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        scores = torch.einsum("ihd,jhd->hij", query, key) * self.head_dim**-0.5
        scores = scores.masked_fill(torch.ones(count, count, dtype=torch.bool).triu(1), -torch.inf)
        attended = torch.einsum("hij,jhd->ihd", scores.softmax(-1), value).reshape(count, -1)
        stream = (normed if self.norms_first else hidden) + attended @ self.o_proj.T
        inner = self._norm("inner", stream)
        return stream + (F.silu(inner @ self.gate_proj.T) * (inner @ self.up_proj.T)) @ self.down_proj.T

    def logits(self, stream: Tensor) -> Tensor:
        """Of the tokens that it knows."""
        return self._norm("last", stream) @ self.lm_head.T

    def guess(self, token_ids: list[int], count: int) -> list[int]:
        """What it guesses to follow, greedily."""
        following = token_ids[1:]
        with torch.no_grad():
            hidden = self.features(token_ids[:-1]) @ self.fc.T
            found: list[int] = []
            while True:
                # Each guess sees its own hidden state; the places before keep what they had.
                stream = self(following, hidden)
                found.append(int(self.targets[self.logits(stream[-1]).argmax()]))
                if len(found) == count:
                    return found
                following = [*following, found[-1]]
                hidden = torch.cat((hidden, stream[-1:]))

    def train_on(self, texts: list[list[int]], *, num_steps: int) -> None:
        """Learns the next tokens of these texts from the model's own hidden states."""
        optimizer: Any = _TORCH.optim.Adam(self.parameters(), lr=3e-3)
        place_of = {int(token): place for place, token in enumerate(self.targets)}
        features = [self.features(text[:-2]) for text in texts]
        wanted = [torch.tensor([place_of.get(token, -100) for token in text[2:]]) for text in texts]
        for step in range(num_steps):
            which = step % len(texts)
            logits = self.logits(self(texts[which][1:-1], features[which] @ self.fc.T))
            loss = F.cross_entropy(logits, wanted[which], ignore_index=-100)
            optimizer.zero_grad()
            _backward(loss)
            optimizer.step()

    def save(self, folder: Path, **config: Any) -> Path:
        """Writes the published files."""
        folder.mkdir(parents=True, exist_ok=True)
        SAFETENSORS.save_file(self.tensors(), folder / "model.safetensors")
        written = {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            "num_hidden_layers": 1,
            "hidden_size": self.dim,
            "intermediate_size": 40,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "max_position_embeddings": 256,
            "vocab_size": self.base[0].config.vocab_size,
            "draft_vocab_size": len(self.targets),
            "norm_before_residual": self.norms_first,
            "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(TAPS), "use_aux_hidden_state": True},
        } | config
        (folder / "config.json").write_text(json.dumps(written))
        return folder

    def tensors(self) -> dict[str, Tensor]:
        """By the published names."""
        known = torch.zeros(self.base[0].config.vocab_size, dtype=torch.bool)
        known[self.targets] = True
        layer = {
            f"self_attn.{name}.weight": getattr(self, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        } | {f"mlp.{name}.weight": getattr(self, name) for name in ("gate_proj", "up_proj", "down_proj")}
        layer |= {
            "input_layernorm.weight": self.norms["token"],
            "hidden_norm.weight": self.norms["hidden"],
            "post_attention_layernorm.weight": self.norms["inner"],
        }
        tensors = {f"midlayer.{name}": tensor for name, tensor in layer.items()}
        tensors |= {"fc.weight": self.fc, "norm.weight": self.norms["last"], "lm_head.weight": self.lm_head}
        tensors |= {"d2t": self.targets - torch.arange(len(self.targets)), "t2d": known}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight: Tensor = self.norms[name]
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def _backward(loss: Any) -> None:
    loss.backward()  # untyped in torch


def new_head(folder: Path, *, seed: int = 0, every: int = 1, norms_first: bool = False) -> ReferenceHead:
    """A random head for a folder's model that knows one in ``every`` tokens."""
    _TORCH.manual_seed(seed)
    base = stock_model(folder)
    return ReferenceHead(base, list(range(0, base.config.vocab_size, every)), norms_first=norms_first)


def _rotate(x: Tensor) -> Tensor:
    """[tokens, heads, dim], each turned by its place; the second half of a head is the partner of the first."""
    count, _, dim = x.shape
    angles = torch.arange(count).unsqueeze(1) * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    cosine, sine = angles.cos().repeat(1, 2).unsqueeze(1), angles.sin().repeat(1, 2).unsqueeze(1)
    first, second = torch.split(x, dim // 2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine
