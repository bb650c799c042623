"""Models without models: a modality that echoes, replicas whose events a test decides, and a server in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

import litserve as ls
import msgspec
from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from sixfold.core.batching.model import ModelInfo
from sixfold.core.decisions import Decision
from sixfold.core.errors import RequestError
from sixfold.core.family import Family, MetricKind, MetricSpec
from sixfold.core.messages import Event, Failed, Finished, Increment, ReplicaTrace, Request, Timing, Usage
from sixfold.core.runtime.replica import EventStream
from sixfold.core.serving.api import Call, ModalityAPI, Route
from sixfold.core.serving.directory import ModelState, OptionsChange
from sixfold.core.serving.sse import DONE, data_frame

TIMEOUT_S = 20.0


class EchoInput(msgspec.Struct, frozen=True):
    words: tuple[str, ...]


class EchoOutput(msgspec.Struct, frozen=True):
    text: str


ECHO = Family(
    name="echo/fake",
    summary="Says what it hears.",
    operations=frozenset({"echo"}),
    loader="none:none",
    input_type=EchoInput,
    output_type=EchoOutput,
    extra="none",
    metrics=(
        MetricSpec(name="echo_depth", kind=MetricKind.GAUGE, help="How deep it echoes."),
        MetricSpec(name="echoes_total", kind=MetricKind.COUNTER, help="Echoes."),
    ),
)
MUTE = Family(
    name="mute/fake",
    summary="Says nothing.",
    operations=frozenset({"mime"}),
    loader="none:none",
    input_type=EchoInput,
    output_type=EchoOutput,
    extra="none",
)


INFO = ModelInfo(max_model_len=512, parameters=1000, memory_bytes=4000)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSnapshot:
    num_running: int = 0
    num_waiting: int = 0
    queued_units: int = 0
    units_per_s: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    decisions: tuple[Decision, ...] = ()


class Submitted:
    """A request at a fake replica; a test answers it from its own thread."""

    def __init__(self, request: Request[EchoInput]) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self.stream = EventStream(self.cancelled.set)
        self._loop = asyncio.get_running_loop()

    def push(self, *events: Event) -> None:
        self._loop.call_soon_threadsafe(self.stream.push, events)

    def say(self, *texts: str) -> None:
        request_id = self.request.request_id
        outputs: list[msgspec.Struct] = [EchoOutput(text) for text in texts]
        self.push(*(Increment(request_id=request_id, output=output) for output in outputs))

    def finish(self, text: str = "", *, timing: Timing | None = None, trace: ReplicaTrace | None = None) -> None:
        self.push(self.finished(text, timing=timing, trace=trace))

    def fail(self, error: RequestError) -> None:
        self.push(Failed(request_id=self.request.request_id, error=error))

    def finished(
        self, text: str = "", *, timing: Timing | None = None, trace: ReplicaTrace | None = None
    ) -> Finished[msgspec.Struct]:
        words = self.request.input.words
        return Finished(
            request_id=self.request.request_id,
            result=EchoOutput(text),
            usage=Usage(counts={"prompt_tokens": len(words)}),
            timing=timing or Timing(queue_s=0.01, inference_s=0.02, num_steps=1, max_batch_sequences=3),
            trace=trace,
        )


class FakeReplica:
    """Echoes at once, or hands each request to the test when ``by_hand``."""

    def __init__(self, *, by_hand: bool = False, snapshot: FakeSnapshot | None = None) -> None:
        self.by_hand = by_hand
        self.rejection: RequestError | None = None
        self.snapshot = snapshot or FakeSnapshot()
        self.info = INFO
        self.submitted: SimpleQueue[Submitted] = SimpleQueue()
        self.num_submitted = 0

    def submit(self, request: Request[Any]) -> EventStream:
        if self.rejection is not None:
            raise self.rejection
        self.num_submitted += 1
        submitted = Submitted(request)
        if self.by_hand:
            self.submitted.put(submitted)
        else:
            words = submitted.request.input.words
            if len(words) > 1:
                submitted.say(*words)
            submitted.finish(" ".join(words))
        return submitted.stream

    def next(self) -> Submitted:
        """The next request that arrives. For ``by_hand``."""
        return self.submitted.get(timeout=TIMEOUT_S)


class Place:
    """A request that waits until its model is loaded; a test ends the wait from its own thread."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()
        self.given_up = threading.Event()
        self.future.add_done_callback(lambda _future: self.given_up.set())

    def load(self) -> None:
        self._loop.call_soon_threadsafe(self._load)

    def _load(self) -> None:
        self._model.state, self._model.info = ModelState.READY, INFO
        self._model.num_users += 1
        self.future.set_result(None)

    def refuse(self, reason: RequestError) -> None:
        self._loop.call_soon_threadsafe(self.future.set_exception, reason)


@dataclass
class FakeModel:
    name: str
    aliases: tuple[str, ...] = ()
    family: Family | None = ECHO
    state: ModelState = ModelState.READY
    replicas: Sequence[FakeReplica] = ()
    created_s: int = 1_700_000_000
    info: ModelInfo | None = INFO
    loads_on_demand: bool = False
    back_in_s: float = 1.0
    request_timeout_s: float | None = None
    variants: tuple[str, ...] = ()
    num_users: int = 0
    waiting: SimpleQueue[Place] = field(default_factory=SimpleQueue[Any])

    def enter(self) -> asyncio.Future[None] | None:
        if self.state is ModelState.READY:
            self.num_users += 1
            return None
        place = Place(self)
        self.waiting.put(place)
        return place.future

    def leave(self) -> None:
        assert self.num_users > 0
        self.num_users -= 1

    async def adjust(self, change: OptionsChange) -> None:
        """The variants stand for the options."""
        self.variants = change(self.variants)


class FakeDirectory:
    def __init__(self, *models: FakeModel) -> None:
        self._models = models
        self.draining = False

    def find(self, name: str) -> FakeModel | None:
        return next((model for model in self._models if name in (model.name, *model.aliases, *model.variants)), None)

    def models(self) -> Sequence[FakeModel]:
        return self._models

    @property
    def ready(self) -> bool:
        return all(model.state is ModelState.READY for model in self._models)


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["text", "image"] = "text"
    content: str | list[str]


class EchoBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    input: str | list[str] | list[int]
    parts: list[Part] = []
    top_p: float = Field(default=1.0, ge=0, le=1)
    stream: bool = False


class EchoAPI(ModalityAPI):
    """``/v1/echo`` and its stream; the words of the input are the increments."""

    modality = "echo"

    def routes(self) -> Sequence[Route]:
        return (
            Route(path="/v1/echo", endpoint=self.echo, body=EchoBody, in_batches=True),
            Route(path="/v1/defect", endpoint=self.defect),
        )

    async def echo(self, call: Call) -> Response:
        """Says what it hears."""
        body = await call.json(EchoBody)
        model = await call.model(body.model, "echo")
        words = body.input.split() if isinstance(body.input, str) else [str(word) for word in body.input]
        given = EchoInput(tuple(words))
        if not body.stream:
            done = await call.run(model, given)
            return call.respond({"model": model.name, "text": done.result.text})
        running = await call.start(model, given)

        async def frames() -> AsyncIterator[bytes]:
            async for events in running:
                for event in events:
                    if isinstance(event, Increment):
                        yield data_frame(msgspec.json.encode(event.output))
                        if event.output == EchoOutput("defect"):
                            raise ZeroDivisionError("/secret/path/of/a/file.py")
            yield DONE

        return call.stream_sse(frames())

    async def defect(self, call: Call) -> Response:
        raise ZeroDivisionError(f"a defect at /secret/path/x.py for {call.request_id}")


class PlainAPI(ls.LitAPI):  # type: ignore[misc]  # litserve ships no types
    """A LitAPI as LitServe's own documentation shows it."""

    def setup(self, device: str) -> None:
        self.device_seen = device

    def predict(self, x: Any, **_context: Any) -> Any:
        if x["input"] == "teapot":
            raise HTTPException(418, "short and stout")
        return {"output": x["input"] ** 2}
