"""Quantizes the linear layers of a loaded model: by this project's kernels where the CPU runs them, else by torchao."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

from torch import nn

from sixfold.core.errors import ConfigError
from sixfold.core.runtime.fp8_linear import can_hold, from_linear
from sixfold.core.runtime.linear import is_stock_linear
from sixfold.core.runtime.quantization.component import Component
from sixfold.core.runtime.quantization.hardware import Hardware, check_hardware, look_at
from sixfold.core.runtime.quantization.methods import (
    FP8_BOTH,
    FP8_WEIGHTS,
    INT4_BOTH,
    INT4_WEIGHTS,
    INT8_BOTH,
    INT8_WEIGHTS,
    NVFP4_BOTH,
)
from sixfold.core.runtime.quantization.modules import INSTALL
from sixfold.core.runtime.quantization.plan import Decision, LinearShape, check_rules, plan
from sixfold.core.runtime.quantization.policy import Method, QuantizationPolicy
from sixfold.core.runtime.quantized_linear import ByteScheme, QuantizedLinear, can_quantize
from sixfold.core.validation import did_you_mean

_BYTE_SCHEMES: Mapping[Method, ByteScheme] = {
    INT8_WEIGHTS: ByteScheme(num_bits=8, keeps_inputs=True),
    INT8_BOTH: ByteScheme(num_bits=8, keeps_inputs=False),
    INT4_WEIGHTS: ByteScheme(num_bits=4, keeps_inputs=True),
    INT4_BOTH: ByteScheme(num_bits=4, keeps_inputs=False),
}

_TORCHAO: Mapping[Method, tuple[str, str]] = {
    INT8_WEIGHTS: ("torchao.quantization", "Int8WeightOnlyConfig"),
    INT8_BOTH: ("torchao.quantization", "Int8DynamicActivationInt8WeightConfig"),
    INT4_WEIGHTS: ("torchao.quantization", "Int4WeightOnlyConfig"),
    FP8_WEIGHTS: ("torchao.quantization", "Float8WeightOnlyConfig"),
    FP8_BOTH: ("torchao.quantization", "Float8DynamicActivationFloat8WeightConfig"),
    NVFP4_BOTH: ("torchao.prototype.mx_formats", "NVFP4DynamicActivationNVFP4WeightConfig"),
}


def linear_shapes(module: nn.Module) -> tuple[LinearShape, ...]:
    """The stock linear layers below a module, by name; a layer that has several places is there once."""
    return tuple(LinearShape(name, layer.out_features, layer.in_features) for name, layer in _linears(module).items())


def plan_components(
    components: Mapping[str, Component], policy: QuantizationPolicy, *, place: str
) -> dict[str, tuple[Decision, ...]]:
    """A plan for each component that is quantized.

    Raises:
        ConfigError: The policy names a component that there is not, or a rule fits no layer.
    """
    unknown = next((name for name in policy.components if name not in components), None)
    if unknown is not None:
        raise ConfigError(
            f"{place}.components.{unknown}: the model has no such part. {did_you_mean(unknown, components)}"
        )
    shapes = {name: linear_shapes(component.module) for name, component in components.items()}
    check_rules(list(shapes.values()), policy.skip, place=f"{place}.skip")
    plans: dict[str, tuple[Decision, ...]] = {}
    for name, component in components.items():
        own, named = policy.of(name), name in policy.components
        if own is None or (component.unless_named and not named):
            continue
        if own.skip is not policy.skip:
            check_rules([shapes[name]], own.skip, place=f"{place}.components.{name}.skip")
        plans[name] = plan(shapes[name], own, defaults=component.defaults)
    if not any(decision.method for decisions in plans.values() for decision in decisions):
        raise ConfigError(f"{place}: nothing is left to quantize. Skip less, or remove the key.")
    return plans


def quantize_components(
    components: Mapping[str, Component], policy: QuantizationPolicy, declared: Collection[Method], *, place: str
) -> str:
    """Plans and quantizes all components in place; the modules can only infer afterwards.

    Args:
        components: By name; all on one device, in evaluation mode.
        policy: What the person wrote.
        declared: What the family offers.
        place: Where the policy stands in the configuration, for messages.

    Returns:
        What was done, in a few words, for `ModelInfo.details`.

    Raises:
        ConfigError: The policy does not fit the model, the hardware or what is installed.
    """
    device = next(iter(next(iter(components.values())).module.parameters())).device
    hardware = look_at(device)
    check_hardware(policy, declared, hardware, place=place)
    plans = plan_components(components, policy, place=place)
    for name, decisions in plans.items():
        apply_plan(components[name].module, decisions, hardware=hardware, place=place)
    return summary(plans)


def apply_plan(module: nn.Module, decisions: Collection[Decision], *, hardware: Hardware, place: str) -> None:
    """Quantizes what the plan says, in place.

    Raises:
        ConfigError: torchao is needed and not installed, or refuses.
    """
    methods = {decision.layer.name: decision.method for decision in decisions if decision.method is not None}
    places = _places(module)
    linears = _linears(module)
    by_torchao: dict[Method, set[int]] = {}
    for name, method in methods.items():
        linear = linears[name]
        if hardware.has_byte_products and method in _BYTE_SCHEMES and can_quantize(linear):
            own = QuantizedLinear.from_linears([linear], _BYTE_SCHEMES[method])
            for parent, child in places[id(linear)]:
                setattr(parent, child, own)
        elif method == FP8_BOTH and can_hold(linear):
            for parent, child in places[id(linear)]:
                setattr(parent, child, from_linear(linear))
        else:
            by_torchao.setdefault(method, set()).add(id(linear))
    for method, chosen in by_torchao.items():
        _quantize_by_torchao(module, method, chosen, place=place)


def byte_schemes(module: nn.Module, decisions: Collection[Decision]) -> dict[nn.Module, ByteScheme]:
    """The layers that this project's kernels take, for families that merge layers before they quantize them."""
    linears = _linears(module)
    schemes = {linears[d.layer.name]: _BYTE_SCHEMES.get(d.method) for d in decisions if d.method is not None}
    return {linear: scheme for linear, scheme in schemes.items() if scheme is not None and can_quantize(linear)}


def summary(plans: Mapping[str, Collection[Decision]]) -> str:
    """What is quantized, such as ``int8 weights: 210 of 211 layers``."""
    all_decisions = [decision for decisions in plans.values() for decision in decisions]
    counts: dict[Method, int] = {}
    for decision in all_decisions:
        if decision.method is not None:
            counts[decision.method] = counts.get(decision.method, 0) + 1
    parts = [f"{method}: {count} of {len(all_decisions)} layers" for method, count in counts.items()]
    return ", ".join(parts)


def _quantize_by_torchao(module: nn.Module, method: Method, chosen: set[int], *, place: str) -> None:
    if method not in _TORCHAO or importlib.util.find_spec("torchao") is None:
        raise ConfigError(f"{place}: {method} needs torchao here, which is not installed. {INSTALL}")
    package, config = _TORCHAO[method]
    left = set(chosen)

    def is_next(layer: nn.Module, _name: str) -> bool:
        # torchao comes by a layer once for each of its places, and can't quantize it twice.
        found = id(layer) in left
        left.discard(id(layer))
        return found

    try:
        torchao: Any = importlib.import_module("torchao.quantization")
        configs: Any = importlib.import_module(package)
        torchao.quantize_(module, getattr(configs, config)(), filter_fn=is_next)
    except (ImportError, AttributeError, AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{place}: torchao can't do {method} here: {error}. Choose another scheme.") from error


def _modules(module: nn.Module) -> dict[str, nn.Module]:
    return dict(cast("Iterator[tuple[str, nn.Module]]", module.named_modules()))  # untyped in torch


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in _modules(module).items() if is_stock_linear(layer)}


def _places(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in _modules(module).values():
        for name, child in parent.named_children():
            places.setdefault(id(child), []).append((parent, name))
    return places
