"""What is done to a stock decoder between reading and serving: quantization, as the policy says, and the cheaper passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from sixfold.core.runtime.quantization.apply import apply_plan, byte_schemes, plan_components, summary
from sixfold.core.runtime.quantization.component import Component
from sixfold.core.runtime.quantization.hardware import check_hardware, look_at
from sixfold.core.runtime.quantization.methods import LINEAR_METHODS
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.plugins.llm.fuse import optimize, quantize_linears
from sixfold.plugins.llm.fused_layer import Schemes
from sixfold.plugins.llm.head_policy import LAYERS, LM_HEAD, with_better_head


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How a decoder is changed.

    Attributes:
        quantization: Which layers are kept in fewer bits.
        model_name: For messages.
        fuse: Whether whole layers may be replaced.
    """

    quantization: QuantizationPolicy | None
    model_name: str
    fuse: bool

    def run(self, model: nn.Module, decoder: nn.Module, *, packed: bool) -> str:
        """Changes the model in place; returns what is quantized, in a few words.

        Args:
            model: As transformers loaded it.
            decoder: The part of it that is stepped.
            packed: Whether layers are packed and merged.

        Raises:
            ConfigError: The policy does not fit the model, the hardware or what is installed.
        """
        schemes: Schemes = {}
        text = ""
        if self.quantization is not None:
            schemes, text = self._quantize(model, self.quantization)
        if packed:
            optimize(model, decoder, fuse=self.fuse, schemes=schemes)
        else:
            quantize_linears(model, schemes)
        return text

    def _quantize(self, model: Any, policy: QuantizationPolicy) -> tuple[Schemes, str]:
        """What this project's kernels take is left for later, since layers merge first; the rest is done."""
        place = f"models.{self.model_name}.quantization"
        hardware = look_at(model.device)
        check_hardware(policy, LINEAR_METHODS, hardware, place=place)
        parts = components(model)
        plans = plan_components(parts, with_better_head(policy), place=place)
        schemes: Schemes = {}
        for name, decisions in plans.items():
            module = parts[name].module
            own = byte_schemes(module, decisions) if hardware.has_byte_products else {}
            modules = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())  # untyped in torch
            own_names = {layer_name for layer_name, layer in modules if layer in own}
            rest = [decision for decision in decisions if decision.layer.name not in own_names]
            apply_plan(module, rest, hardware=hardware, place=place)
            schemes = {**schemes, **own}
        return schemes, summary(plans)


def has_other_parts(model: Any) -> bool:
    """Whether there is more than a decoder, such as a vision tower."""
    return model.config.get_text_config() is not model.config


def decoder_of(model: Any) -> Any:
    """The part of the model that is stepped; the model itself where there is no other."""
    return model.get_decoder() if has_other_parts(model) else model


def components(model: Any) -> dict[str, Component]:
    """The parts that a policy may name: the layers, and the head. A vision tower keeps its type."""
    layers = model.get_decoder() if has_other_parts(model) else getattr(model, model.base_model_prefix)
    found = {LAYERS: Component(module=layers)}
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        found[LM_HEAD] = Component(module=nn.ModuleDict({LM_HEAD: head}))
    return found
