"""The linear layers of a decoder behind which adapters act."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sixfold.plugins.llm.lora_adapter import ModuleShape
from sixfold.plugins.llm.lora_sites import AdapterRouter, AdapterSite

_BLOCK = re.compile(r"\.\d+\.")


def linear_shapes(model: nn.Module, decoder: nn.Module) -> dict[str, ModuleShape]:
    """The linear layers of a stock decoder's blocks, by their name in the model: all that see every row of a step.

    Args:
        model: The whole.
        decoder: The part of it that is stepped. A vision tower has other rows.
    """
    inside = set(decoder.modules())
    shapes: dict[str, ModuleShape] = {}
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())  # untyped in torch
    for name, module in modules:
        # Blocks are numbered. Experts see the rows that are routed to them.
        if module not in inside or not _BLOCK.search(name) or ".experts." in name:
            continue
        if type(module) is nn.Linear:
            shapes[name] = ModuleShape(in_features=module.in_features, out_features=module.out_features)
        elif type(module) is Conv1D:  # GPT-2's
            num_in, num_out = module.weight.shape
            shapes[name] = ModuleShape(in_features=num_in, out_features=num_out)
    return shapes


class AdaptedLinear(nn.Module):
    """A linear layer of a stock model, with a site behind it.

    Args:
        linear: The layer, or what stands in its place.
        site: Of this layer alone.
    """

    def __init__(self, linear: nn.Module, site: AdapterSite) -> None:
        super().__init__()
        self.linear = linear
        self._site = site

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return self._site.add(x, self.linear(x))


def add_sites(model: nn.Module, router: AdapterRouter, shapes: Mapping[str, ModuleShape]) -> None:
    """Puts a site behind each linear layer of a decoder that has them still; fused layers make theirs themselves.

    Args:
        model: Changed. Its layers may have been replaced, under the same names.
        router: Gets the sites.
        shapes: What `linear_shapes` said of the stock model.
    """
    for name, shape in shapes.items():
        if name not in router.shapes:
            parent_name, _, own_name = name.rpartition(".")
            parent = model.get_submodule(parent_name)
            site = router.add_site((name,), (shape,))
            setattr(parent, own_name, AdaptedLinear(getattr(parent, own_name), site))
