"""The ``parallel`` of a registry entry; imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from sixfold.core.parallel.degrees import Degrees

Degree = Annotated[int, Field(ge=1, le=64)]


class ParallelSettings(BaseModel):
    """Processes that compute each step of a replica together: the product of the four degrees."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: Degree = 1
    """Groups that each compute a share of a step's rows (requests)."""

    cfg: Degree = 1
    """Groups for the branches of classifier-free guidance, which are rows, too: 2 is what guidance has."""

    context: Degree = 1
    """Ranks that share the tokens of each row."""

    tensor: Degree = 1
    """Ranks that share each layer's weights. No family splits them yet: leave it at 1."""

    ulysses: Degree | None = None
    """Of the context ranks, so many trade attention heads; key/value blocks travel among the rest. Null: the planner says."""

    step_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300.0
    """A step that is not done after so long counts as hanging: the replica is started anew."""

    load_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 900.0
    """A rank that has not loaded after so long is given up."""

    @model_validator(mode="after")
    def _fits(self) -> ParallelSettings:
        if self.tensor > 1:
            raise ValueError(
                f"tensor is {self.tensor}, and no family of this version splits weights. Use context or cfg instead"
            )
        if self.ulysses is not None and self.context % self.ulysses:
            raise ValueError(f"ulysses ({self.ulysses}) must divide context ({self.context})")
        return self

    @property
    def num_ranks(self) -> int:
        """Processes of one replica."""
        return self.data * self.cfg * self.context * self.tensor

    def degrees(self, ulysses: int) -> Degrees:
        """The mesh, with what the planner says where nothing is set."""
        return Degrees(
            data=self.data, cfg=self.cfg, context=self.context, tensor=self.tensor, ulysses=self.ulysses or ulysses
        )


Parallel = ParallelSettings | Literal["auto"]


def written_parallel(value: JsonValue | ParallelSettings) -> object:
    """What people may write: a mapping, ``auto``, or nothing.

    Raises:
        ValueError: Something else.
    """
    if value is None or value == "auto" or isinstance(value, dict | ParallelSettings):
        return value
    raise ValueError("must be 'auto' or a mapping with degrees, such as {context: 2, cfg: 2}")
