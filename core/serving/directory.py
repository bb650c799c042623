"""What the HTTP face asks about models: which there are, in what state, and where their replicas are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Protocol

from sixfold.core.batching.model import ModelInfo
from sixfold.core.family import Family
from sixfold.core.runtime.replica import Replica


class ModelState(StrEnum):
    """Where a model is in its life."""

    LOADING = "loading"
    READY = "ready"
    UNLOADED = "unloaded"
    DRAINING = "draining"
    FAILED = "failed"


OptionsChange = Callable[[Any], Any]
"""Takes the family's options and gives changed ones; what it raises goes to whoever asked."""


class HostedModel(Protocol):
    """One entry of the registry with its replicas. Read in the event loop; every answer is about this moment."""

    @property
    def name(self) -> str:
        """The registry's name."""
        ...

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names that clients may use."""
        ...

    @property
    def variants(self) -> tuple[str, ...]:
        """Further names that the model's family offers, each answering in its own way; see `Family.variants`."""
        ...

    @property
    def family(self) -> Family | None:
        """The family that serves it; None while its files have not told yet."""
        ...

    @property
    def state(self) -> ModelState:
        """READY while at least one replica takes requests or is being replaced, UNLOADED while a request would load it."""
        ...

    @property
    def info(self) -> ModelInfo | None:
        """What the loaded model tells about itself; None until it was loaded once."""
        ...

    @property
    def replicas(self) -> Sequence[Replica]:
        """The replicas that take requests now; may be empty for a moment when a worker died."""
        ...

    @property
    def back_in_s(self) -> float:
        """Where there is no replica: when there will be one again, as far as that can be told."""
        ...

    @property
    def request_timeout_s(self) -> float | None:
        """How long a request may take once it is submitted (`Limits.request_timeout_s`); None for ever."""
        ...

    async def adjust(self, change: OptionsChange) -> None:
        """Lets all replicas take over changed options while they serve; those that come later have them, too.

        Args:
            change: Makes new options of those in force.

        Raises:
            RequestError: What ``change`` raised; InvalidRequest if the model can't take them over: all is as before.
        """
        ...

    @property
    def loads_on_demand(self) -> bool:
        """Whether requests may wait until it is loaded: not while it loads for the first time of its own accord."""
        ...

    def enter(self) -> asyncio.Future[None] | None:
        """Counts a user, who must `leave`. While a model has users it is not unloaded.

        Returns:
            None, or a future where the model must be loaded first: done without an error, the user is counted; cancelled
            or set to an error by its owner, it is not (see `sixfold.core.memory.occupancy.wait_for_place`).

        Raises:
            NotReady: It can't be waited for.
        """
        ...

    def leave(self) -> None:
        """A user has gone."""
        ...

    @property
    def created_s(self) -> int:
        """Unix time of the entry, for clients; stays the same while the entry does."""
        ...


def takes_requests(model: HostedModel) -> bool:
    """Whether a request would be served now: a model whose workers have ended and did not come back yet is READY, and is not."""
    return model.state is ModelState.READY and bool(model.replicas)


class Directory(Protocol):
    """The models of this server. Called in the event loop; must not block."""

    def find(self, name: str) -> HostedModel | None:
        """The model of this name, alias or variant, in whatever state; None if there is none."""
        ...

    def models(self) -> Sequence[HostedModel]:
        """All models, in the order of the configuration."""
        ...

    @property
    def ready(self) -> bool:
        """Whether every model that should be ready is."""
        ...

    @property
    def draining(self) -> bool:
        """Whether no model takes new requests any more."""
        ...
