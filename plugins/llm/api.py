"""The HTTP face: OpenAI's chat, completion and responses endpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.responses import Response

from sixfold.core.jobs import JobStore
from sixfold.core.serving.api import Call, ModalityAPI, Panel, Route, Services
from sixfold.plugins.llm.adapter_routes import adapter_routes
from sixfold.plugins.llm.answer_parser import ParserChoice
from sixfold.plugins.llm.image_parts import chat_images, fetch_images
from sixfold.plugins.llm.refusals import check_chat, check_completion
from sixfold.plugins.llm.requests import chat_input, completion_input
from sixfold.plugins.llm.responses_messages import response_images
from sixfold.plugins.llm.responses_objects import ResponseStatus, request_members
from sixfold.plugins.llm.responses_requests import check_response, input_items, response_input
from sixfold.plugins.llm.responses_schema import NoQuery, ResponsesBody
from sixfold.plugins.llm.responses_store import ResponseStore
from sixfold.plugins.llm.responses_stream import ResponseBuilder, ResponseStream, whole_response
from sixfold.plugins.llm.schema import ChatBody, CompletionBody, GenerationBody
from sixfold.plugins.llm.wire import Head
from sixfold.plugins.llm.wire_chat import chat_chunks, chat_object
from sixfold.plugins.llm.wire_chat_parts import parsed_chat_chunks
from sixfold.plugins.llm.wire_completions import completion_chunks, completion_object

_RESPONSE = "/v1/responses/{response_id}"


class LlmAPI(ModalityAPI):
    """Serves every family of this modality."""

    modality = "llm"

    def routes(self) -> Sequence[Route]:
        """Chat, completion, responses, and the coming and going of adapters."""
        return (
            Route(path="/v1/chat/completions", endpoint=self.chat, body=ChatBody, in_batches=True),
            Route(path="/v1/completions", endpoint=self.complete, body=CompletionBody, in_batches=True),
            Route(path="/v1/responses", endpoint=self.respond, body=ResponsesBody, in_batches=True),
            Route(path=_RESPONSE, endpoint=self.retrieve_response, method="GET", query_params=NoQuery),
            Route(path=_RESPONSE, endpoint=self.delete_response, method="DELETE"),
            *adapter_routes(),
        )

    def panels(self) -> Sequence[Panel]:
        """The tab Chat."""
        script = Path(__file__).parent / "playground" / "chat.js"
        return (Panel(title="Chat", operation="chat", script=script, order=10),)

    async def startup(self, services: Services) -> None:
        """Finds the place of stored responses; their file is made with the first."""
        jobs = JobStore(services.data_dir / "responses.sqlite3", clock=services.clock)
        self._responses = ResponseStore(jobs, clock=services.clock)

    async def shutdown(self) -> None:
        """Closes the stored responses."""
        await self._responses.close()

    async def chat(self, call: Call) -> Response:
        """Answers a conversation."""
        body = await call.json(ChatBody)
        check_chat(body)
        model = await call.model(body.model, "chat")
        head = Head.new("chatcmpl", model.name)
        logprobs = bool(body.logprobs)
        images = await fetch_images(call, tuple(chat_images(body)), model.info.details)
        chat = chat_input(body, model.variant, images)
        parsers = ParserChoice.of(model.info.details, chat)
        if not body.stream:
            finished = await call.run(model, chat)
            return call.respond(chat_object(head, finished, logprobs=logprobs, parsers=parsers))
        running = await call.start(model, chat)
        include_usage = _include_usage(body)
        if parsers.is_plain:
            return call.stream_sse(chat_chunks(head, running, logprobs=logprobs, include_usage=include_usage))
        return call.stream_sse(
            parsed_chat_chunks(head, running, logprobs=logprobs, include_usage=include_usage, parsers=parsers)
        )

    async def complete(self, call: Call) -> Response:
        """Continues one or many prompts."""
        body = await call.json(CompletionBody)
        check_completion(body)
        model = await call.model(body.model, "complete")
        head = Head.new("cmpl", model.name)
        logprobs = body.logprobs is not None
        completion = completion_input(body, model.variant)
        if not body.stream:
            finished = await call.run(model, completion)
            return call.respond(completion_object(head, finished, logprobs=logprobs, echo=bool(body.echo)))
        running = await call.start(model, completion)
        return call.stream_sse(
            completion_chunks(
                head, running, logprobs=logprobs, include_usage=_include_usage(body), echo=bool(body.echo)
            )
        )

    async def respond(self, call: Call) -> Response:
        """Answers a conversation whose earlier turns may be stored."""
        body = await call.json(ResponsesBody)
        check_response(body)
        model = await call.model(body.model, "chat")
        earlier = await self._responses.conversation(body.previous_response_id, owner=call.tenant)
        wanted = (*response_images(earlier, "previous_response_id"), *response_images(input_items(body), "input"))
        images = await fetch_images(call, wanted, model.info.details)
        chat = response_input(body, earlier, model.variant, images)
        parsers = ParserChoice.of(model.info.details, chat)
        head = Head(id=self._responses.new_id(), created=int(time.time()), model=model.name)
        builder = ResponseBuilder(head, request_members(body))

        async def finish(status: ResponseStatus, counts: Mapping[str, int]) -> dict[str, Any]:
            response = builder.object(status, usage=counts, completed_s=int(time.time()))
            if body.store is not False:
                await self._responses.put(response, input_items(body), owner=call.tenant)
            return response

        if body.stream:
            running = await call.start(model, chat)
            return call.stream_sse(ResponseStream(builder, parsers).frames(running, finish))
        finished = await call.run(model, chat)
        return call.respond(await finish(whole_response(builder, finished.result, parsers), finished.usage.counts))

    async def retrieve_response(self, call: Call) -> Response:
        """A stored response."""
        call.query(NoQuery)
        return call.respond(await self._responses.get(call.path_params["response_id"], owner=call.tenant))

    async def delete_response(self, call: Call) -> Response:
        """Forgets a stored response."""
        response_id = call.path_params["response_id"]
        await self._responses.delete(response_id, owner=call.tenant)
        return call.respond({"id": response_id, "object": "response", "deleted": True})


def _include_usage(body: GenerationBody) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage
