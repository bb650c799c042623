"""The HTTP face: a LitAPI that lists its routes."""

from collections.abc import AsyncIterator, Sequence

import msgspec
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from sixfold.core import Call, Increment, ModalityAPI, Route
from sixfold_reverse.messages import Text


class ReverseBody(BaseModel):
    """``POST /v1/reverse``; unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid")

    model: str
    text: str
    stream: bool = False


class ReverseAPI(ModalityAPI):
    """Whole answers as JSON, or letter by letter as server-sent events."""

    modality = "reverse"

    def routes(self) -> Sequence[Route]:
        """One route."""
        return (Route(path="/v1/reverse", endpoint=self.reverse, body=ReverseBody, in_batches=True),)

    async def reverse(self, call: Call) -> Response:
        """Answers one request; errors become OpenAI-shaped bodies, a client that leaves cancels its text."""
        body = await call.json(ReverseBody)
        model = await call.model(body.model, "reverse")
        if not body.stream:
            finished = await call.run(model, Text(body.text))
            return call.respond({"model": model.name, "text": finished.result.text})
        running = await call.start(model, Text(body.text))

        async def letters() -> AsyncIterator[bytes]:
            async for events in running:
                for event in events:
                    if isinstance(event, Increment):
                        yield b"data: " + msgspec.json.encode(event.output.letter) + b"\n\n"
            yield b"data: [DONE]\n\n"

        return call.stream_sse(letters())
