"""The HTTP face: runs in the serving process."""

from pydantic import BaseModel
from starlette.responses import Response

from sixfold.core import Call, ModalityAPI, Route
from sixfold_classify.plugin import Texts


class Body(BaseModel, extra="forbid"):
    """``POST /v1/classify``; unknown fields are refused by name."""

    model: str
    input: list[str]


class API(ModalityAPI):
    """One route."""

    modality = "classify"

    def routes(self) -> list[Route]:
        """See `ModalityAPI`."""
        return [Route(path="/v1/classify", endpoint=self.classify, body=Body, in_batches=True)]

    async def classify(self, call: Call) -> Response:
        """Answers one request."""
        body = await call.json(Body)
        model = await call.model(body.model, "classify")
        done = await call.run(model, Texts(body.input))
        return call.respond({"model": model.name, "data": done.result.rows, "usage": done.usage.counts})
