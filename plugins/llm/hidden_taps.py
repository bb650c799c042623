"""Takes hidden states out of a decoder's middle, for heads that guess from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sixfold.plugins.llm.batch_layout import BatchLayout


class HiddenTaps:
    """What enters some layers of a decoder, of its last step. Owned by the device thread.

    Args:
        layers: All layers, fused or not.
        places: Which layers; their inputs are joined in this order.
    """

    def __init__(self, layers: Sequence[nn.Module], places: Sequence[int]) -> None:
        self._inputs: list[Tensor | None] = [None] * len(places)
        self._layout: BatchLayout | None = None
        for slot, place in enumerate(places):
            layers[place].register_forward_pre_hook(self._hook(slot), with_kwargs=True)

    def begin(self, layout: BatchLayout) -> None:
        """A step begins."""
        self._layout = layout

    def take(self) -> tuple[BatchLayout, Tensor] | None:
        """The last step's layout, as it was made on the host, and [tokens, places * dim]; once, then None."""
        inputs = [given for given in self._inputs if given is not None]
        layout, self._layout = self._layout, None
        self._inputs = [None] * len(self._inputs)
        if layout is None or not inputs:
            return None
        return layout, torch.cat(inputs, dim=-1)

    def _hook(self, slot: int) -> Any:
        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            self._inputs[slot] = hidden[0]

        return keep
