"""A modality that uses all of the serving interface: forms, queries, files, streams, sockets, work in the background."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from sixfold.core.errors import RequestError, StepFailed
from sixfold.core.messages import Increment
from sixfold.core.serving.api import BackgroundRun, Call, ModalityAPI, Route, Services, SocketCall, SocketRoute, Upload
from tests.core.serving.fake_replica import EchoInput, EchoOutput


class Vad(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: str
    threshold: float = 0.5


class KitchenForm(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = "parrot"
    file: Upload | None = None
    image: list[Upload] = []
    tags: tuple[str, ...] = ()
    words: str | list[str] | None = None
    count: int = 1
    heat: float | None = Field(default=None, ge=0, le=2)
    loud: bool = False
    mode: Literal["plain", "fancy"] = "plain"
    vad: Literal["auto"] | Vad | None = None
    extra: dict[str, int] | None = None
    vads: list[Vad] = []


class KitchenQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=100)
    after: str | None = None
    include: list[str] = []


def shown(value: Any) -> Any:
    if isinstance(value, Upload):
        return [value.filename, value.content_type, len(value.data), value.data[:20].decode("latin-1")]
    if isinstance(value, list | tuple):
        return [shown(each) for each in cast(Sequence[Any], value)]
    return value.model_dump() if isinstance(value, BaseModel) else value


class KitchenAPI(ModalityAPI):
    modality = "kitchen"

    def __init__(self) -> None:
        super().__init__()
        self.services: Services | None = None
        self.running: BackgroundRun | None = None
        self.endings: list[str] = []
        self.served_file = Path()

    def routes(self) -> Sequence[Route | SocketRoute]:
        return (
            Route(path="/v1/form", endpoint=self.form, form=KitchenForm, body=KitchenForm),
            Route(path="/v1/things/{thing_id}", endpoint=self.thing, method="GET", query_params=KitchenQuery),
            Route(path="/v1/models-of/{operation}", endpoint=self.models_of, method="GET"),
            Route(path="/v1/bytes", endpoint=self.bytes, media_types=("audio/wav",), in_batches=True),
            Route(path="/v1/upload", endpoint=self.form, form=KitchenForm, in_batches=True),
            Route(path="/v1/file", endpoint=self.file, method="GET", media_types=("video/mp4",)),
            Route(path="/v1/fetch", endpoint=self.fetch),
            Route(path="/v1/later", endpoint=self.later),
            SocketRoute(path="/v1/socket", endpoint=self.socket, query_params=KitchenQuery),
        )

    async def startup(self, services: Services) -> None:
        self.services = services

    async def shutdown(self) -> None:
        self.endings.append("shutdown")

    async def form(self, call: Call) -> Response:
        """Shows a form as it was understood."""
        if not call.is_form:
            body = await call.json(KitchenForm)
            return call.respond({"json": body.model})
        form = await call.form(KitchenForm)
        return call.respond({name: shown(getattr(form, name)) for name in sorted(form.model_fields_set)})

    async def thing(self, call: Call) -> Response:
        query = call.query(KitchenQuery)
        return call.respond(
            {"thing": call.path_params["thing_id"], "tenant": call.tenant, **query.model_dump()},
            status=201,
            headers={"x-thing": "yes"},
        )

    async def models_of(self, call: Call) -> Response:
        return call.respond({"models": [model.name for model in call.models(call.path_params["operation"])]})

    async def bytes(self, call: Call) -> Response:
        words = json.loads((await call.json(EchoText)).text)
        running = await call.start(await call.model("parrot", "echo"), EchoInput(tuple(words)))

        async def chunks() -> AsyncIterator[bytes]:
            async for events in running:
                for event in events:
                    if isinstance(event, Increment):
                        assert isinstance(event.output, EchoOutput)
                        word = event.output.text
                        if word == "refuse":
                            raise StepFailed("The model cannot say that.")
                        if word == "defect":
                            raise ZeroDivisionError("/secret/path.py")
                        yield word.encode()

        return call.stream_bytes(chunks(), media_type="audio/wav", headers={"x-sample-rate": "24000"})

    async def file(self, call: Call) -> Response:
        return call.respond_file(self.served_file, media_type="video/mp4", filename="clip.mp4")

    async def fetch(self, call: Call) -> Response:
        fetched = await call.fetch((await call.json(EchoText)).text, max_bytes=100)
        return call.respond({"data": fetched.data.decode(), "content_type": fetched.content_type})

    async def later(self, call: Call) -> Response:
        assert self.services is not None
        text = (await call.json(EchoText)).text
        self.running = self.services.background("parrot", "echo", EchoInput((text,)), tenant=call.tenant)
        self.task = asyncio.create_task(self._follow(self.running))
        return call.respond({"status": "queued"}, status=202)

    async def _follow(self, run: BackgroundRun) -> None:
        try:
            self.endings.append((await run.result()).result.text)
        except RequestError as error:
            self.endings.append(str(error.code))

    async def socket(self, socket: SocketCall) -> None:
        """Echoes; some words make it do other things."""
        query = socket.query(KitchenQuery)
        model = await socket.model(query.after or "parrot", "echo")
        while (message := await socket.receive()) is not None:
            if message == "bye":
                await socket.close(4000, "bye")
            elif message == "defect":
                raise ZeroDivisionError("/secret/path.py")
            elif message == "hold":
                await socket.run(model, EchoInput(("held",)))
            elif isinstance(message, str) and message.startswith("drop"):
                pass
            elif isinstance(message, bytes):
                await socket.send(message[::-1])
            else:
                done = await socket.run(model, EchoInput(tuple(message.split())))
                await socket.send(done.result.text)


class EchoText(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = "parrot"
    text: str
