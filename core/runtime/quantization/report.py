"""Measures a policy as a whole, and each group of layers alone, so that people choose by evidence what to skip."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sixfold.core.runtime.quantization.plan import LinearShape, group_of
from sixfold.core.runtime.quantization.policy import ComponentPolicy, QuantizationPolicy, patterns
from sixfold.core.runtime.quantization.quality import Quality, QualityProbe

BASE = "unquantized"
WHOLE = "the policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the report.

    Attributes:
        name: What was quantized.
        num_layers: How many layers that are, skipped ones of the policy not subtracted.
        quality: What came of it.
    """

    name: str
    num_layers: int
    quality: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that do the same in every block.

    Attributes:
        component: Which the policy knows them by.
        name: With a star for each number.
        num_layers: How many there are.
    """

    component: str
    name: str
    num_layers: int


def groups_of(layers: Mapping[str, tuple[LinearShape, ...]]) -> tuple[Group, ...]:
    """The groups of all components, in the order of their layers."""
    counts: dict[tuple[str, str], int] = {}
    for component, shapes in layers.items():
        for shape in shapes:
            key = component, group_of(shape.name)
            counts[key] = counts.get(key, 0) + 1
    return tuple(Group(component=component, name=name, num_layers=count) for (component, name), count in counts.items())


def policy_of(
    group: Group, policy: QuantizationPolicy, layers: Mapping[str, tuple[LinearShape, ...]]
) -> QuantizationPolicy:
    """The policy's method for one group, and nothing else."""
    own = policy.of(group.component) or policy
    whole = re.escape(group.name).replace(r"\*", r"\d+")
    others: dict[str, ComponentPolicy | None] = {name: None for name in layers if name != group.component}
    is_part = any(group_of(layer.name) != group.name for layer in layers[group.component])
    return QuantizationPolicy(
        scheme=own.scheme,
        what=own.what,
        skip=patterns(f"re:(?!{whole}$).*") if is_part else (),
        # Named, since some components are quantized only if they are.
        components={**others, group.component: ComponentPolicy(scheme=own.scheme)},
    )


def measure(
    probe: QualityProbe, policy: QuantizationPolicy, *, by_group: bool, report: Callable[[str], None]
) -> Iterator[Row]:
    """Yields a row for the unquantized model, one for the policy, and one for each group alone.

    Groups are not timed: a layer that is alone in its type may keep others from being merged with it.

    Args:
        probe: Of the model.
        policy: What is looked at.
        by_group: Whether groups are measured.
        report: Told what is measured next.

    Raises:
        ConfigError: The policy does not fit the model, the hardware or what is installed.
    """
    layers: Mapping[str, tuple[LinearShape, ...]] = {}
    if policy.what != "kv_cache":  # a cache is one group
        layers = probe.layers()
    report(BASE)
    yield Row(name=BASE, num_layers=0, quality=probe.measure(None, timed=True))
    report(WHOLE)
    yield Row(name=WHOLE, num_layers=sum(map(len, layers.values())), quality=probe.measure(policy, timed=True))
    groups = groups_of(layers) if by_group else ()
    for group in groups:
        report(f"{group.component}: {group.name}")
        alone = policy_of(group, policy, layers)
        yield Row(
            name=f"{group.component}: {group.name}",
            num_layers=group.num_layers,
            quality=probe.measure(alone, timed=False),
        )
