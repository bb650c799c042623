"""Decides by its name alone whether a linear layer is quantized: pure, so that it can be shown and tested."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sixfold.core.errors import ConfigError
from sixfold.core.runtime.quantization.policy import DEFAULTS, Method, QuantizationPolicy, SkipRule, SkipRules

KINDS: Mapping[str, re.Pattern[str]] = {
    "attention": re.compile(r"(^|\.)[^.]*(attn|attention)[^.]*(\.|$)"),
    "mlp": re.compile(r"(^|\.)(mlp|[^.]*_mlp|ff|ff_[^.]*|ffn|feed_forward|fc[123]|intermediate|net)(\.|$)"),
    "embedder": re.compile(r"(^[^.]*_in(\.|$))|((^|\.)([^.]*embed[^.]*|caption_projection)(\.|$))"),
    "modulation": re.compile(r"(^|\.)([^.]*_mod|[^.]*modulation[^.]*|ada[^.]*|norm[^.]*\.linear|time_emb_proj)(\.|$)"),
    "output": re.compile(r"^(norm_out|proj_out|final_layer|lm_head)(\.|$)"),
}
"""Words that stand for layers of one kind, however the model names them."""

_NUMBER = re.compile(r"(^|\.)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer.

    Attributes:
        name: With dots, as ``named_modules`` gives it.
        out_features: Columns of its result.
        in_features: Of its input.
    """

    name: str
    out_features: int
    in_features: int

    @property
    def num_weights(self) -> int:
        """Without the bias."""
        return self.out_features * self.in_features


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a layer.

    Attributes:
        layer: Which one.
        method: How it is quantized; None if it is not.
        reason: The rule that says so.
    """

    layer: LinearShape
    method: Method | None
    reason: str


def plan(
    layers: Sequence[LinearShape], policy: QuantizationPolicy, *, defaults: SkipRules = ()
) -> tuple[Decision, ...]:
    """One decision a layer, in their order. The first rule that fits is the reason.

    Args:
        layers: Of one component.
        policy: For it.
        defaults: What the word ``defaults`` stands for.
    """
    blocks = _blocks(layers)
    reasons: dict[str, str] = {}
    for rule in policy.skip:
        is_word = rule.pattern == DEFAULTS
        for inner in defaults if is_word else (rule,):
            reason = f"skip: {DEFAULTS} ({inner})" if is_word else f"skip: {rule}"
            for layer in filter(_test(inner, blocks), layers):
                reasons.setdefault(layer.name, reason)
    return tuple(
        Decision(layer, None, reasons[layer.name])
        if layer.name in reasons
        else Decision(layer, policy.method, str(policy.method))
        for layer in layers
    )


def check_rules(components: Sequence[Sequence[LinearShape]], rules: SkipRules, *, place: str) -> None:
    """Refuses a rule that fits no layer of any of the components: it is a mistake, and would be ignored in silence.

    Raises:
        ConfigError: Shows which layers there are.
    """
    for rule in rules:
        fits = (any(map(_test(rule, _blocks(layers)), layers)) for layers in components)
        if rule.pattern != DEFAULTS and not any(fits):
            raise ConfigError(f"{place}: '{rule}' fits no linear layer. {_choices(components)}")


def group_of(name: str) -> str:
    """Layers that do the same in every block share a group: numbers become stars."""
    return _NUMBER.sub(r"\1*", name)


def block_of(name: str) -> str | None:
    """The outermost numbered module that a layer is in, such as ``model.layers.3``."""
    found = _NUMBER.search(name)
    return None if found is None else name[: found.end()]


def _blocks(layers: Sequence[LinearShape]) -> list[str]:
    """All blocks in the order of their layers. Numbered modules without a row of siblings are no blocks.

    ``to_out.0`` is the only number of its parent that holds a layer; a model with a single block has none to spare.
    """
    found = list(dict.fromkeys(block for layer in layers if (block := block_of(layer.name)) is not None))
    siblings = Counter(block.rpartition(".")[0] for block in found)
    return [block for block in found if siblings[block.rpartition(".")[0]] > 1]


def _test(rule: SkipRule, blocks: Sequence[str]) -> Callable[[LinearShape], bool]:
    if rule.pattern is None:
        chosen = blocks[: rule.first_blocks] if rule.first_blocks is not None else blocks[-(rule.last_blocks or 1) :]
        among = frozenset(chosen)
        return lambda layer: block_of(layer.name) in among
    if rule.pattern.startswith("re:"):
        whole = re.compile(rule.pattern.removeprefix("re:"))
        return lambda layer: whole.fullmatch(layer.name) is not None
    if rule.pattern in KINDS:
        kind = KINDS[rule.pattern]
        return lambda layer: kind.search(layer.name) is not None
    part = f".{rule.pattern}."
    return lambda layer: part in f".{layer.name}."


def _choices(components: Sequence[Sequence[LinearShape]]) -> str:
    groups = list(dict.fromkeys(group_of(layer.name) for layers in components for layer in layers))
    shown = ", ".join(groups[:12]) + (", ..." if len(groups) > 12 else "")
    return f"Kinds: {', '.join(KINDS)}. Layers: {shown or 'none'}."
