"""One model behind a real HTTP server in a thread of this process, as a client finds it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import InvalidRequest, SixfoldError
from sixfold.core.family import Family
from sixfold.core.registry import ResolvedModel
from sixfold.core.runtime.replica import Replica
from sixfold.core.serving import lifecycle
from sixfold.core.serving.api import ModalityAPI
from sixfold.core.serving.directory import ModelState, OptionsChange
from sixfold.core.serving.lifecycle import Listening
from sixfold.core.serving.server import SixfoldServer
from sixfold.core.serving.settings import ServerSettings
from sixfold.core.testing.failure import DoesNotLoad, fail
from sixfold.core.testing.gate import PATIENCE_S, StepGate
from sixfold.core.testing.replica import GatedReplica


class SoleModel:
    """A `HostedModel` that is always in memory.

    Args:
        resolved: What it is.
        replica: Its one replica.
    """

    loads_on_demand = False
    state = ModelState.READY

    def __init__(self, resolved: ResolvedModel, replica: GatedReplica) -> None:
        self._resolved = resolved
        self._replica = replica
        self.name = resolved.entry.name
        self.aliases = resolved.entry.aliases
        self.variants = resolved.family.variants(resolved.options)
        self.created_s = int(time.time())

    @property
    def family(self) -> Family:
        """The family that serves it."""
        return self._resolved.family

    @property
    def info(self) -> ModelInfo:
        """What it tells about itself."""
        return self._replica.info

    @property
    def replicas(self) -> Sequence[Replica]:
        """The one."""
        return (self._replica,)

    @property
    def back_in_s(self) -> float:
        """It never leaves."""
        return 0.0

    @property
    def request_timeout_s(self) -> float | None:
        """The entry's."""
        return self._resolved.entry.limits.request_timeout_s

    async def adjust(self, change: OptionsChange) -> None:
        """Never: the kit changes nothing."""
        raise InvalidRequest("The model under test keeps its options.")

    def enter(self) -> asyncio.Future[None] | None:
        """It is there."""
        return None

    def leave(self) -> None:
        """Nobody counts."""


class SoleDirectory:
    """A `Directory` of one model."""

    draining = False
    ready = True

    def __init__(self, model: SoleModel) -> None:
        self._model = model

    def find(self, name: str) -> SoleModel | None:
        """The model, if it has this name."""
        model = self._model
        return model if name in (model.name, *model.aliases, *model.variants) else None

    def models(self) -> Sequence[SoleModel]:
        """The model."""
        return (self._model,)


class ModelServer:
    """Loads a model and serves it on a free port of the loopback, as long as the block lasts.

    Args:
        resolved: The model.
        api: The HTTP face of its modality.
        data_dir: Of the server.
        max_queue_units: See `GatedReplica`.
        patience_s: For it to end.

    Attributes:
        gate: Before its steps.
        replica: The model itself.
        port: Where it listens.
    """

    replica: GatedReplica
    port: int

    def __init__(
        self,
        resolved: ResolvedModel,
        api: ModalityAPI,
        *,
        data_dir: Path,
        max_queue_units: int | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._resolved = resolved
        self._api = api
        self._patience_s = patience_s
        self._settings = ServerSettings(
            port=0,
            data_dir=data_dir,
            playground=False,
            drain_timeout_s=1.0,
            request_timeout_s=resolved.entry.limits.request_timeout_s,
        )
        self._max_queue_units = max_queue_units
        self._ready: SimpleQueue[Listening | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="conformance server", daemon=True)
        self.gate = StepGate()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lifecycle.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # the test's thread raises it
            self._ready.put(error)

    async def _serve(self) -> None:
        self.replica = GatedReplica(self._resolved, self.gate, max_queue_units=self._max_queue_units)
        async with self._loaded():
            server = SixfoldServer([self._api], SoleDirectory(SoleModel(self._resolved, self.replica)), self._settings)
            await lifecycle.serve(server, on_listening=self._ready.put)

    @asynccontextmanager
    async def _loaded(self) -> AsyncGenerator[None]:
        try:
            try:
                await self.replica.start()
            except Exception as error:  # a model's code may raise anything while it loads
                raise DoesNotLoad(self._reason(error)) from error
            yield
        finally:
            await self.replica.close()

    def _reason(self, error: Exception) -> str:
        """Why it does not load, as the log of a server has it, and the line of code."""
        reason = str(error) if isinstance(error, SixfoldError) else f"{type(error).__name__}: {error}"
        place = ""
        if not isinstance(error, SixfoldError):
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f" ({Path(frame.filename).name}, line {frame.lineno}, in {frame.name})"
        return f"models.{self._resolved.entry.name}: {reason}{place}"

    def __enter__(self) -> Self:
        self._thread.start()
        listening = self._ready.get()  # loading takes as long as it takes; who waits too long has a timeout of his own
        if isinstance(listening, BaseException):
            self._thread.join()
            raise listening
        self._listening = listening
        self.port = listening.port
        return self

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        """Ends it.

        Raises:
            CheckFailed: It does not end.
            BaseException: What ended it before, even where a check has failed: that may be why.
        """
        self.gate.open()
        with contextlib.suppress(RuntimeError):  # its loop has ended by itself
            self._listening.lifecycle.drain_threadsafe()
        self._thread.join(self._patience_s)
        if self._thread.is_alive() and kind is None:
            fail(
                f"The server of {self._resolved.entry.name} did not end in {self._patience_s:g} s: close() did not return. Does "
                "it wait for something that has ended?"
            )
        if not self._ready.empty():
            late = self._ready.get()
            assert isinstance(late, BaseException)
            raise late
