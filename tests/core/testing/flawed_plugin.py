"""A modality of one family that keeps every promise, or breaks just the one that its option or its HTTP face names."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import msgspec
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from sixfold.core.batching.model import Finish, Granted, ModelInfo, Outcome, StepModel
from sixfold.core.errors import InvalidRequest, QueueFull, RequestError
from sixfold.core.family import Family, LoadContext, MetricKind, MetricSpec
from sixfold.core.hookspecs import Api
from sixfold.core.memory.need import MemoryNeed
from sixfold.core.messages import Cost, Increment, Request, Usage
from sixfold.core.probe import Fields, Probe
from sixfold.core.serving.api import Call, ModalityAPI, Route, Running, ServedModel, Services, Upload

HERE = "tests.core.testing.flawed_plugin"

LOADED: weakref.WeakSet[FlawedModel] = weakref.WeakSet()
"""The models that are in memory."""

MAY_CLOSE = threading.Event()
"""What a model waits for that does not close."""


class Options(BaseModel):
    """Of a model that may be flawed."""

    model_config = ConfigDict(extra="forbid")

    flaw: str = ""


class LooseOptions(BaseModel):
    """Takes anything."""

    model_config = ConfigDict(extra="allow")


class Words(msgspec.Struct, frozen=True, tag=True):
    words: tuple[str, ...]


class Said(msgspec.Struct, frozen=True, tag=True):
    """An increment, and with all words the result."""

    words: tuple[str, ...]
    score: float = 0.0


class Secret(msgspec.Struct, frozen=True, tag=True):
    """No output that the family declares."""

    words: tuple[str, ...]


class Speaker:
    """A running sequence."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.said: list[str] = []
        self.score = 0.0


class FlawedModel(StepModel[Speaker, Words, Any]):
    """Says a word a step; holds a slot for each sequence between its first step and its release."""

    def __init__(self, flaw: str = "") -> None:
        self._flaw = flaw
        self._slots: set[int] = set()
        self._num_words = 0
        self._num_steps = 0
        LOADED.add(self)

    @property
    def info(self) -> ModelInfo:
        if self._flaw == "hides its info":
            raise RuntimeError("Nobody has told me.")
        return ModelInfo(max_model_len=100)

    def close(self) -> None:
        if self._flaw == "does not close":
            MAY_CLOSE.wait()

    def estimate_units(self, request: Request[Words]) -> int:
        return max(1, len(request.input.words))

    def prepare(self, request: Request[Words], piece: object) -> Sequence[Speaker]:
        if not request.input.words:
            raise InvalidRequest("Say something.", param="input")
        return (Speaker(request.input.words),)

    def cost(self, sequence: Speaker) -> Cost:
        key = id(sequence) if self._flaw == "own batch key" else None
        return Cost(units=1, min_units=1, batch_key=key)

    def step(self, batch: Sequence[Granted[Speaker]]) -> Sequence[Outcome[Any]]:
        self._num_steps += 1
        return [self._say(granted.sequence, len(batch)) for granted in batch]

    def _say(self, speaker: Speaker, num_rows: int) -> Outcome[Any]:
        self._slots.add(id(speaker))
        self._num_words += 1
        word = speaker.words[len(speaker.said)]
        if self._flaw == "sees the batch":
            speaker.score += num_rows
        if self._flaw == "rounds":
            speaker.score += 1e-6 * num_rows
        if self._flaw == "draws numbers":
            speaker.score += self._num_steps
        speaker.said.append(word)
        output = Secret((word,)) if self._flaw == "undeclared output" else Said((word,))
        return Outcome(output, done=len(speaker.said) == len(speaker.words))

    def release(self, sequence: Speaker) -> None:
        if self._flaw != "keeps its slots":
            self._slots.discard(id(sequence))

    def finish(self, request: Request[Words], sequences: Sequence[Speaker]) -> Finish[Any]:
        (speaker,) = sequences
        return Finish(result=Said(tuple(speaker.said), speaker.score), usage=Usage(counts={"words": len(speaker.said)}))

    def stats(self) -> Mapping[str, float]:
        words = -self._num_words if self._flaw == "counts down" else self._num_words
        found: dict[str, float] = {"spoken_words_total": words, "speaker_slots": len(self._slots)}
        if self._flaw == "undeclared metric":
            found["surprise"] = 1
        if self._flaw == "silent metric":
            del found["spoken_words_total"]
        if self._flaw == "more metrics":  # no flaw
            found |= {"speaker_slots_total": 8, "word_letters/sum": 5, "word_letters/0": 0, "word_letters/1": 1}
        return found


def load(context: LoadContext) -> FlawedModel:
    return FlawedModel(getattr(context.options, "flaw", ""))


class SayBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    input: list[str]
    stream: bool = False


class LooseBody(SayBody):
    model_config = ConfigDict(extra="ignore", strict=True)


class SpeakingAPI(ModalityAPI):
    """Keeps every promise; subclasses break one."""

    modality = "speaking"
    body: type[SayBody] = SayBody

    def routes(self) -> Sequence[Route]:
        return (Route(path="/v1/say", endpoint=self.say, body=self.body),)

    async def say(self, call: Call) -> Response:
        body = await call.json(self.body)
        model = await call.model(body.model, "say")
        given = Words(tuple(body.input))
        if body.stream:
            return call.stream_sse(self.frames(await call.start(model, given)))
        return await self.whole(call, model, given)

    async def whole(self, call: Call, model: ServedModel, given: Words) -> Response:
        done = await call.run(model, given)
        return call.respond({"words": done.result.words, "score": done.result.score})

    async def frames(self, running: Running) -> AsyncIterator[bytes]:
        async for events in running:
            for event in events:
                if isinstance(event, Increment):
                    yield b"data: " + msgspec.json.encode({"words": cast(Any, event.output).words}) + b"\n\n"
        yield b"data: [DONE]\n\n"


class BackgroundAPI(SpeakingAPI):
    """Goes on where its client has left."""

    async def startup(self, services: Services) -> None:
        self._services = services

    async def whole(self, call: Call, model: ServedModel, given: Words) -> Response:
        done = await self._services.background(model.name, "say", given, tenant=call.tenant).result()
        return call.respond({"words": done.result.words, "score": done.result.score})


class FullIsBrokenAPI(SpeakingAPI):
    """Tells a full queue as a defect."""

    async def whole(self, call: Call, model: ServedModel, given: Words) -> Response:
        try:
            return await super().whole(call, model, given)
        except QueueFull as full:
            raise RequestError("Something went wrong.") from full


class ImpatientAPI(SpeakingAPI):
    """Forgets to say when to come back."""

    async def whole(self, call: Call, model: ServedModel, given: Words) -> Response:
        try:
            return await super().whole(call, model, given)
        except QueueFull as full:
            error = {"message": full.message, "type": full.type, "param": None, "code": full.code}
            return call.respond({"error": error}, status=429)


class LooseAPI(SpeakingAPI):
    """Ignores what it does not know."""

    body = LooseBody


class OwnErrorsAPI(SpeakingAPI):
    """Has a shape of errors of its own."""

    async def say(self, call: Call) -> Response:
        try:
            return await super().say(call)
        except InvalidRequest as error:
            return call.respond({"detail": error.message}, status=400)


class NamelessAPI(SpeakingAPI):
    """Names no field."""

    async def say(self, call: Call) -> Response:
        try:
            return await super().say(call)
        except InvalidRequest as error:
            raise InvalidRequest(error.message) from error


class UndescribedAPI(SpeakingAPI):
    """Does not describe its body."""

    def routes(self) -> Sequence[Route]:
        return (Route(path="/v1/say", endpoint=self.say),)


class EndlessAPI(SpeakingAPI):
    """Does not end its streams."""

    async def frames(self, running: Running) -> AsyncIterator[bytes]:
        async for frame in super().frames(running):
            if frame != b"data: [DONE]\n\n":
                yield frame


class BareAPI(SpeakingAPI):
    """Streams lines that are no frames."""

    async def frames(self, running: Running) -> AsyncIterator[bytes]:
        async for frame in super().frames(running):
            yield frame.removeprefix(b"data: ")


class TornAPI(SpeakingAPI):
    """Streams what is no JSON."""

    async def frames(self, running: Running) -> AsyncIterator[bytes]:
        async for frame in super().frames(running):
            yield frame.replace(b"}", b"")


class HoardingAPI(SpeakingAPI):
    """Sends its stream as one frame."""

    async def frames(self, running: Running) -> AsyncIterator[bytes]:
        yield b"".join([frame async for frame in super().frames(running)][-1:])


class JustWholeAPI(SpeakingAPI):
    """Answers whole where a stream was asked for."""

    async def say(self, call: Call) -> Response:
        body = await call.json(SayBody)
        return await self.whole(call, await call.model(body.model, "say"), Words(tuple(body.input)))


class FormBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    input: str
    voice: Upload
    loud: bool = False


class FormAPI(SpeakingAPI):
    """Takes forms."""

    def routes(self) -> Sequence[Route]:
        return (Route(path="/v1/say", endpoint=self.say, form=FormBody),)

    async def say(self, call: Call) -> Response:
        body = await call.form(FormBody)
        return await self.whole(call, await call.model(body.model, "say"), Words((body.input,)))


class TextVoiceBody(FormBody):
    voice: Upload | str  # type: ignore[assignment]  # the flaw  # pyright: ignore[reportIncompatibleVariableOverride]


class TextVoiceAPI(FormAPI):
    """Takes a text for a file, and never looks at it."""

    async def say(self, call: Call) -> Response:
        body = await call.form(TextVoiceBody)
        return await self.whole(call, await call.model(body.model, "say"), Words((body.input,)))


class MoodBody(SayBody):
    mood: dict[str, Any] = {}


class MoodAPI(SpeakingAPI):
    """Has a field that takes any mapping."""

    body = MoodBody


class JobAPI(SpeakingAPI):
    """Makes a job of each request, as one that may be late."""

    outcome = "completed"
    error: Mapping[str, str] = MappingProxyType({})

    def routes(self) -> Sequence[Route]:
        return (
            Route(path="/v1/say", endpoint=self.say, body=self.body),
            Route(path="/v1/say/{job_id}", endpoint=self.show, method="GET"),
        )

    async def say(self, call: Call) -> Response:
        await call.json(self.body)
        return call.respond({"id": "job1", "status": "queued"})

    async def show(self, call: Call) -> Response:
        return call.respond({"id": call.path_params["job_id"], "status": self.outcome, "error": dict(self.error)})


class FailingJobAPI(JobAPI):
    """Fails each job."""

    outcome = "failed"
    error = MappingProxyType({"code": "no_voice", "message": "The voice is lost."})


class EndlessJobAPI(JobAPI):
    """Ends no job."""

    outcome = "in_progress"


class RefusingJobAPI(JobAPI):
    """Takes no job."""

    async def say(self, call: Call) -> Response:
        raise InvalidRequest("No jobs today.", param="input")


class UnlikeAPI:
    """No HTTP face at all."""


PROBE = Probe(
    operation="say",
    path="/v1/say",
    make_body=lambda model, number: {"model": model, "input": [f"word{number}", "and", "another"]},
    content=lambda answer: [answer["words"], answer["score"]],
    stream={"stream": True},
)
FORM_PROBE = Probe(
    operation="say",
    path="/v1/say",
    make_body=lambda model, number: {"model": model, "input": f"word{number}", "voice": b"\x00\x01", "loud": True},
    content=lambda answer: [answer["words"], answer["score"]],
    is_form=True,
)


def _mood_body(model: str, number: int) -> Fields:
    return {**PROBE.make_body(model, number), "mood": {"glad": number}}


MOOD_PROBE = replace(PROBE, make_body=_mood_body)
JOB_PROBE = replace(PROBE, is_job=True, stream=None)


def api(face: type = SpeakingAPI, *, probes: tuple[Probe, ...] = (PROBE,)) -> Api:
    return Api(modality="speaking", factory=f"{HERE}:{face.__name__}", probes=probes)


def _needs_a_byte(_question: object) -> MemoryNeed:
    return MemoryNeed(weights_bytes=1)


def family(**changes: Any) -> Family:
    fields: dict[str, Any] = {
        "name": "speaking/words",
        "summary": "Says words.",
        "operations": frozenset({"say"}),
        "loader": f"{HERE}:load",
        "input_type": Words,
        "output_type": Said,
        "options": Options,
        "memory": _needs_a_byte,
        "metrics": (
            MetricSpec(name="spoken_words_total", kind=MetricKind.COUNTER, help="Words."),
            MetricSpec(name="speaker_slots", kind=MetricKind.GAUGE, help="Slots that speakers hold.", is_held=True),
        ),
    }
    return Family(**fields | changes)
