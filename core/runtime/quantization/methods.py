"""The ways to quantize that there are, and which is the nearest to one that there is not; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Collection

from sixfold.core.errors import ConfigError
from sixfold.core.runtime.quantization.policy import Method, QuantizationPolicy

_BITS = {"nvfp4": 4, "int4": 4, "int8": 8, "fp8": 8}

INT8_WEIGHTS = Method("int8", "weights")
INT8_BOTH = Method("int8", "weights+activations")
INT4_WEIGHTS = Method("int4", "weights")
INT4_BOTH = Method("int4", "weights+activations")
FP8_WEIGHTS = Method("fp8", "weights")
FP8_BOTH = Method("fp8", "weights+activations")
NVFP4_BOTH = Method("nvfp4", "weights+activations")

FP8_CACHE = Method("fp8", "kv_cache")
INT8_CACHE = Method("int8", "kv_cache")

LINEAR_METHODS = frozenset({INT8_WEIGHTS, INT8_BOTH, INT4_WEIGHTS, INT4_BOTH, FP8_WEIGHTS, FP8_BOTH, NVFP4_BOTH})
"""What there is for linear layers, on one device or another."""

CACHE_METHODS = frozenset({FP8_CACHE, INT8_CACHE})
"""What there is for a language model's cache."""


_WEIGHTS_ADVICE = "Set what: weights or what: weights+activations, or remove the key."


def nearest(method: Method, available: Collection[Method]) -> Method | None:
    """The most alike of what is available: of layers or of the cache, as that is; then as many bits, then the same parts of the
    model and the same kind of numbers.
    """

    def distance(other: Method) -> tuple[bool, int, bool, bool, bool, Method]:
        bits = abs(_BITS[other.scheme] - _BITS[method.scheme])
        is_other_kind = other.scheme.startswith("int") != method.scheme.startswith("int")
        is_other_half = (other.what == "kv_cache") != (method.what == "kv_cache")
        return is_other_half, bits, other.scheme != method.scheme, other.what != method.what, is_other_kind, other

    return min(available, key=distance, default=None)


def check_declared(policy: QuantizationPolicy, declared: Collection[Method], *, family: str, place: str) -> None:
    """Refuses what a family does not offer on any hardware.

    Raises:
        ConfigError: Names the nearest that it does.
    """
    for method in policy.methods():
        if method not in declared:
            if method.what == "kv_cache" and CACHE_METHODS.isdisjoint(declared):
                raise ConfigError(f"{place}: {family} keeps its cache as its attention reads it. {_WEIGHTS_ADVICE}")
            raise ConfigError(f"{place}: {family} does not offer {method}. {advice(method, declared)}")


def advice(method: Method, available: Collection[Method]) -> str:
    """A sentence that names the nearest method."""
    best = nearest(method, available)
    if best is None:
        return "Remove the key: there is nothing like it here."
    return f"The nearest that works: {{scheme: {best.scheme}, what: {best.what}}}."
