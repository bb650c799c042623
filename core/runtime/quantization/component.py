"""A part of a model that a policy may name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sixfold.core.runtime.quantization.policy import SkipRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A part of a model that a policy may name.

    Attributes:
        module: Its linear layers are meant.
        defaults: What the word ``defaults`` in a skip list stands for.
        unless_named: Whether it keeps its type unless the policy names it.
    """

    module: nn.Module
    defaults: SkipRules = ()
    unless_named: bool = False
