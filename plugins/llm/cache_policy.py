"""What a quantization policy means for a decoder's cache; imports nothing heavy, since memory is claimed before loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from sixfold.core.errors import ConfigError
from sixfold.core.runtime.quantization.policy import QuantizationPolicy

CacheScheme = Literal["fp8", "int8"]
"""The numbers of a cache of fewer bits: fp8 is e4m3 without infinities."""

KV_CACHE = "kv_cache"
"""The component that is the cache, beside the layers of a policy for weights."""

SCALE_BYTES = 4
"""A float32 for each token of each head, of the key and of the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """A policy in its two halves.

    Attributes:
        scheme: Of the cache; None to keep it in the weights' type.
        weights: Of the layers; None to leave them as they are.
    """

    scheme: CacheScheme | None
    weights: QuantizationPolicy | None


UNQUANTIZED = CachePolicy(scheme=None, weights=None)
"""Of a model without a policy."""


def split(policy: QuantizationPolicy | None, *, place: str) -> CachePolicy:
    """Parts what a policy says of the cache from what it says of the layers.

    Raises:
        ConfigError: It says of one what only the other can have.
    """
    if policy is None:
        return UNQUANTIZED
    if policy.what == "kv_cache":
        if policy.components or "skip" in policy.model_fields_set:
            raise ConfigError(
                f"{place}: what: kv_cache names no layers, so skip and components have no meaning. Remove them, or write "
                f"the layers' policy and components: {{kv_cache: {{scheme: {policy.scheme}, what: kv_cache}}}}."
            )
        return CachePolicy(scheme=cast("CacheScheme", policy.scheme), weights=None)
    others = {name: part for name, part in policy.components.items() if name != KV_CACHE}
    wrong = [name for name, part in others.items() if part is not None and part.what == "kv_cache"]
    if wrong:
        raise ConfigError(
            f"{place}.components.{wrong[0]}: what: kv_cache is for the component kv_cache alone. Write "
            f"components: {{kv_cache: {{scheme: fp8, what: kv_cache}}}}."
        )
    cache = policy.of(KV_CACHE) if KV_CACHE in policy.components else None
    if cache is not None and cache.what != "kv_cache":
        raise ConfigError(
            f"{place}.components.kv_cache: it keeps no {cache.what}. Write {{scheme: fp8, what: kv_cache}} for it."
        )
    if cache is not None and policy.components[KV_CACHE] is not None:
        if "skip" in policy.components[KV_CACHE].model_fields_set:  # type: ignore[union-attr]
            raise ConfigError(f"{place}.components.kv_cache.skip: a cache has no layers to skip. Remove it.")
    return CachePolicy(
        scheme=None if cache is None else cast("CacheScheme", cache.scheme),
        weights=policy.model_copy(update={"components": others}),
    )


def head_token_bytes(head_dim: int, itemsize: int, scheme: CacheScheme | None) -> int:
    """What one token's key, or its value, takes in one head."""
    return head_dim * itemsize if scheme is None else head_dim + SCALE_BYTES
