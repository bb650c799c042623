"""What a check is, what it is given, and how it fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sixfold.core.hookspecs import Api
from sixfold.core.plugins import Plugins
from sixfold.core.probe import Probe
from sixfold.core.registry import ResolvedModel
from sixfold.core.runtime.loading import imported
from sixfold.core.serving.api import ModalityAPI
from sixfold.core.testing.client import ANSWER_PATIENCE_S, Client
from sixfold.core.testing.failure import fail
from sixfold.core.testing.gate import PATIENCE_S
from sixfold.core.testing.model_server import ModelServer

_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUnderTest:
    """One model of the configuration, and what the kit needs to try it.

    Attributes:
        resolved: Its files and family.
        plugins: All that are installed.
        data_dir: For servers; empty at first.
        patience_s: For what must happen beside the steps; only what has gone wrong takes as long.
    """

    resolved: ResolvedModel
    plugins: Plugins
    data_dir: Path
    patience_s: float = PATIENCE_S

    @property
    def name(self) -> str:
        """The entry's name."""
        return self.resolved.entry.name

    @property
    def api(self) -> Api:
        """The HTTP face of its modality.

        Raises:
            CheckFailed: There is none.
        """
        modality = self.resolved.family.modality
        if modality not in self.plugins.apis:
            fail(
                f"No plugin brings an HTTP face for the modality {modality!r}: nobody can reach {self.resolved.family.name}. "
                f"Register an Api, or name the family after a modality that has one: {', '.join(self.plugins.apis)}."
            )
        return self.plugins.apis[modality]

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What is asked of it.

        Raises:
            CheckFailed: Nothing.
        """
        operations = self.resolved.family.operations
        found = tuple(probe for probe in self.api.probes if probe.operation in operations)
        if not found:
            fail(
                f"The Api of {self.api.modality!r} has no probe for {', '.join(sorted(operations)) or 'any operation'}, so "
                "nothing can be tried. Give it Api(..., probes=(Probe(...),))."
            )
        return found

    def server(self, *, max_queue_units: int | None = None) -> ModelServer:
        """A server of it; enter it."""
        factory = imported(self.api.factory)
        if not issubclass(factory, ModalityAPI):
            fail(f"Api.factory {self.api.factory} is no ModalityAPI.")
        return ModelServer(
            self.resolved,
            factory(),
            data_dir=self.data_dir / f"queue-{max_queue_units}",
            max_queue_units=max_queue_units,
            patience_s=self.patience_s,
        )

    @property
    def answer_patience_s(self) -> float:
        """For an answer: a little more than its requests may take, so that the server's own 504 comes first."""
        timeout_s = self.resolved.entry.limits.request_timeout_s
        return ANSWER_PATIENCE_S if timeout_s is None else timeout_s + self.patience_s

    def client(self, server: ModelServer) -> Client:
        """A client of a server of it; enter it."""
        return Client(server.port, patience_s=self.answer_patience_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model while it is served: what most checks look at."""

    subject: ModelUnderTest
    server: ModelServer
    client: Client

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What is asked of it."""
        return self.subject.probes


def eventually(holds: Callable[[], bool], timeout_s: float) -> bool:
    """Looks again and again until something holds; False if it never does."""
    until_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > until_s:
            return False
        time.sleep(_POLL_S)
    return True
