"""What a person writes about quantization; imports nothing heavy, since the configuration is read everywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

Scheme = Literal["fp8", "int8", "int4", "nvfp4"]
"""A type of numbers."""

What = Literal["weights", "weights+activations", "kv_cache"]
"""What is kept in it."""

DEFAULTS = "defaults"
"""The word that stands for a family's own list of what to skip."""

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True, order=True)
class Method:
    """One way to quantize. Families declare which they can.

    Attributes:
        scheme: Type of the numbers.
        what: What they are.
    """

    scheme: Scheme
    what: What

    def __str__(self) -> str:
        return f"{self.scheme} {self.what}"


class SkipRule(BaseModel):
    """Layers that keep their type. One of the three is given; text alone is a pattern."""

    model_config = _FROZEN

    pattern: Annotated[str, Field(min_length=1)] | None = None
    """A kind (``attention``, ``mlp``), a layer's name or part of it between dots, ``re:`` and a regular expression for the
    whole name, or ``defaults``."""

    first_blocks: Annotated[int, Field(ge=1)] | None = None
    """So many of the first blocks."""

    last_blocks: Annotated[int, Field(ge=1)] | None = None
    """So many of the last blocks."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("re:"):
            try:
                re.compile(value.removeprefix("re:"))
            except re.error as error:
                raise ValueError(f"{value!r} is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if len(self.model_fields_set) != 1 or any(getattr(self, name) is None for name in self.model_fields_set):
            raise ValueError("must be text, {first_blocks: N} or {last_blocks: N}")
        return self

    def __str__(self) -> str:
        (name,) = self.model_fields_set
        value = getattr(self, name)
        return str(value) if name == "pattern" else f"{name}: {value}"


def _skip_rule(value: object) -> object:
    return {"pattern": value} if isinstance(value, str) else value


SkipRules = tuple[Annotated[SkipRule, BeforeValidator(_skip_rule)], ...]


def patterns(*texts: str) -> SkipRules:
    """Rules of these patterns."""
    return tuple(SkipRule(pattern=text) for text in texts)


class ComponentPolicy(BaseModel):
    """What differs for one component; what is not given is as for the whole model."""

    model_config = _FROZEN

    scheme: Scheme | None = None
    """Type of the numbers."""

    what: What | None = None
    """What is kept in it."""

    skip: SkipRules | None = None
    """Layers that keep their type, instead of the model's list."""


class QuantizationPolicy(BaseModel):
    """Which layers of a model are kept in fewer bits, and in which."""

    model_config = _FROZEN

    scheme: Scheme
    """Type of the numbers: ``int8``, ``int4``, ``fp8`` or ``nvfp4``."""

    what: What = "weights"
    """``weights`` (the products' inputs keep their accuracy), ``weights+activations`` (faster), or ``kv_cache``."""

    skip: SkipRules = patterns(DEFAULTS)
    """Layers that keep their type; ``defaults`` stands for the family's own list, which is what is skipped unless given."""

    components: dict[str, ComponentPolicy | None] = {}
    """What differs for a component (``text_encoder``, ``lm_head``); null leaves it as it is."""

    @property
    def method(self) -> Method:
        """Of what no component changes."""
        return Method(self.scheme, self.what)

    def methods(self) -> tuple[Method, ...]:
        """All that is asked for, each once."""
        inner = [part for name in self.components if (part := self.of(name)) is not None]
        return tuple(dict.fromkeys((self.method, *(part.method for part in inner))))

    def of(self, component: str) -> QuantizationPolicy | None:
        """The policy for one component; None if it stays as it is."""
        if component not in self.components:
            return self.model_copy(update={"components": {}})
        part = self.components[component]
        if part is None:
            return None
        given = {name: getattr(part, name) for name in part.model_fields_set if getattr(part, name) is not None}
        return self.model_copy(update={"components": {}, **given})


def written_policy(value: object) -> object:
    """A scheme alone stands for a policy of it."""
    return {"scheme": value} if isinstance(value, str) else value
