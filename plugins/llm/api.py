"""The HTTP face: OpenAI's chat and completion endpoints."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from sixfold.core.serving.api import Call, ModalityAPI, Route
from sixfold.plugins.llm.answer_parser import ParserChoice
from sixfold.plugins.llm.refusals import check_chat, check_completion
from sixfold.plugins.llm.requests import chat_input, completion_input
from sixfold.plugins.llm.schema import ChatBody, CompletionBody, GenerationBody
from sixfold.plugins.llm.wire import Head
from sixfold.plugins.llm.wire_chat import chat_chunks, chat_object
from sixfold.plugins.llm.wire_chat_parts import parsed_chat_chunks
from sixfold.plugins.llm.wire_completions import completion_chunks, completion_object


class LlmAPI(ModalityAPI):
    """Serves every family of this modality."""

    modality = "llm"

    def routes(self) -> Sequence[Route]:
        """Chat and completion."""
        return (
            Route(path="/v1/chat/completions", endpoint=self.chat, body=ChatBody),
            Route(path="/v1/completions", endpoint=self.complete, body=CompletionBody),
        )

    async def chat(self, call: Call) -> Response:
        """Answers a conversation."""
        body = await call.json(ChatBody)
        check_chat(body)
        model = call.model(body.model, "chat")
        head = Head.new("chatcmpl", model.name)
        logprobs = bool(body.logprobs)
        chat = chat_input(body)
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
        model = call.model(body.model, "complete")
        head = Head.new("cmpl", model.name)
        logprobs = body.logprobs is not None
        if not body.stream:
            finished = await call.run(model, completion_input(body))
            return call.respond(completion_object(head, finished, logprobs=logprobs))
        running = await call.start(model, completion_input(body))
        return call.stream_sse(completion_chunks(head, running, logprobs=logprobs, include_usage=_include_usage(body)))


def _include_usage(body: GenerationBody) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage
