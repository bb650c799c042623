"""Runs the head of a transformers model alone, over hidden states that its body gave before."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions


class StandIn(nn.Module):
    """Takes the place of the body in a model with a head; a body that pools lends its pooler.

    Attributes:
        hidden: [batch, tokens, dim], what the body "computes" at its next call.
    """

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler
        self.hidden: Tensor | None = None

    def forward(self, *_inputs: object, **_named: object) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Ignores all inputs."""
        assert self.hidden is not None
        pooled = self.pooler(self.hidden) if self.pooler is not None else None
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=self.hidden, pooler_output=pooled)


def take_body(model: Any) -> tuple[Any, StandIn]:
    """Takes the body out of a model and leaves a stand-in there; returns both."""
    prefix: str = model.base_model_prefix
    body = getattr(model, prefix)
    stand_in = StandIn(getattr(body, "pooler", None))
    setattr(model, prefix, stand_in)
    return body, stand_in
