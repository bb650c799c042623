"""What the ranks of a replica tell each other over their socket pairs; tensors go beside them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Rank 0's order: compute your share of a forward of a module.

    Attributes:
        number: Counts the forwards.
        module: Its name.
        arguments: A header of `codec.pack`, whose tensors follow; None if there are no rows for this rank.
        answers: Whether to send the answer back: the first rank of a share of rows does.
    """

    number: int
    module: str
    arguments: bytes | None
    answers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Rank 0's order: end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A rank has its modules and waits for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingFailed:
    """A rank could not load; ``is_usage_error`` says that it never will."""

    message: str
    is_usage_error: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A rank has done its share of a forward; ``answer`` is a header whose tensors follow, if it was asked for."""

    number: int
    answer: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """A rank's share raised; if all ranks' shares did, all of them are as before."""

    number: int
    message: str


FromLeader = Forward | Stop
FromFollower = Loaded | LoadingFailed | Done | Raised
