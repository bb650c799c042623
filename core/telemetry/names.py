"""What a family's stages and operations are called in traces: the core measures them all alike, a modality has words for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceNames:
    """The words of one family.

    Attributes:
        prepare: From arrival at the replica until the first sequence is ready for a step.
        first: From the first step to the first increment.
        rest: From there to the last step.
        finish: From the last step until the result is here.
        operations: ``gen_ai.operation.name`` of the conventions for the family's operations; others keep their name.
    """

    prepare: str = "prepare"
    first: str = "first output"
    rest: str = "further output"
    finish: str = "finish"
    operations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
