"""Turns validated bodies into the runtime's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.generation import (
    ChatInput,
    ChatMessage,
    CompletionInput,
    GrammarSpec,
    ImagePart,
    KvTransferParams,
    SamplingParams,
    ToolCall,
    ToolSpec,
)
from sixfold.plugins.llm.kv_handle import KvHandle
from sixfold.plugins.llm.schema import ChatBody, CompletionBody, GenerationBody, Message
from sixfold.plugins.llm.schema_structured import (
    JsonObject,
    NamedToolChoice,
    ResponseFormat,
    StructuredOutputs,
    ToolBody,
)

_COMPLETION_DEFAULT_TOKENS = 16
"""What OpenAI's reference says of ``max_tokens`` of ``/v1/completions``."""


def chat_input(body: ChatBody, adapter: str | None = None, images: Sequence[ImagePart] = ()) -> ChatInput:
    """The input of a chat request that `refusals.check_chat` let pass, for the model alone or an adapter of it.

    Args:
        body: The request.
        adapter: As in `ChatInput`.
        images: Those of `image_parts.chat_images`, in order.
    """
    remaining = iter(images)
    num_top = None
    if body.logprobs:
        num_top = body.top_logprobs or 0
    choice = body.tool_choice
    return ChatInput(
        messages=tuple(_chat_message(message, remaining) for message in body.messages),
        params=_sampling_params(
            body, body.max_completion_tokens or body.max_tokens, num_top, _format_grammar(body.response_format)
        ),
        num_choices=body.n,
        stream=bool(body.stream),
        template_kwargs=body.chat_template_kwargs or {},
        cache_salt=body.cache_salt,
        # A model that may not call is not told about tools: it could not keep a promise it does not know of.
        tools=() if choice == "none" else tuple(_tool_spec(tool) for tool in body.tools or ()),
        must_call=choice == "required" or isinstance(choice, NamedToolChoice),
        must_call_name=choice.function.name if isinstance(choice, NamedToolChoice) else None,
        allow_parallel_calls=body.parallel_tool_calls is not False,
        adapter=adapter,
        kv_transfer=_kv_transfer(body),
    )


def completion_input(body: CompletionBody, adapter: str | None = None) -> CompletionInput:
    """The input of a completion request that `refusals.check_completion` let pass; ``adapter`` as in `chat_input`."""
    max_tokens = _COMPLETION_DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    return CompletionInput(
        prompts=_prompts(body),
        params=_sampling_params(body, max_tokens, body.logprobs),
        num_choices=body.n,
        stream=bool(body.stream),
        echo=bool(body.echo),
        cache_salt=body.cache_salt,
        adapter=adapter,
        kv_transfer=_kv_transfer(body),
    )


def _kv_transfer(body: GenerationBody) -> KvTransferParams | None:
    wanted = body.kv_transfer_params
    if wanted is None or not (wanted.do_remote_decode or wanted.handle):
        return None
    try:
        handle = None if wanted.handle is None else msgspec.convert(wanted.handle, KvHandle)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"'handle' is not what a server gave: {error}. Send it unchanged.", param="kv_transfer_params.handle"
        ) from error
    return KvTransferParams(wants_handle=wanted.do_remote_decode, handle=handle)


def _prompts(body: CompletionBody) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(body.prompt, str):
        return (body.prompt,)
    token_ids = tuple(item for item in body.prompt if isinstance(item, int))
    if token_ids:
        return (token_ids,)
    return tuple(item if isinstance(item, str) else tuple(item) for item in body.prompt if not isinstance(item, int))


def _chat_message(message: Message, images: Iterator[ImagePart]) -> ChatMessage:
    # Templates know no "developer": it is OpenAI's newer name for the system's role.
    role = "system" if message.role == "developer" else message.role
    content = message.content
    parts: tuple[str | ImagePart, ...] = ()
    if not isinstance(content, str):
        given = content or ()
        content = "".join(part.text or "" for part in given)
        if any(part.image_url is not None for part in given):
            parts = tuple(next(images) if part.image_url is not None else part.text or "" for part in given)
    return ChatMessage(
        role=role,
        content=content,
        parts=parts,
        name=message.name,
        reasoning=message.reasoning_content or message.reasoning,
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id,
    )


def _tool_spec(tool: ToolBody) -> ToolSpec:
    function = tool.function
    return ToolSpec(
        name=function.name,
        description=function.description,
        parameters=function.parameters,
        is_strict=bool(function.strict),
    )


def _format_grammar(form: ResponseFormat | None) -> GrammarSpec | None:
    if form is None or form.type == "text":
        return None
    if form.value is not None:
        return schema_grammar(form.value, "response_format.value")
    if form.json_schema is None or form.json_schema.schema_ is None:
        return GrammarSpec(kind="json_object")
    return schema_grammar(form.json_schema.schema_, "response_format.json_schema.schema")


def schema_grammar(schema: JsonObject | str, param: str, *, is_compact: bool = False) -> GrammarSpec:
    """The grammar of JSON of a schema.

    Args:
        schema: As an object or as text.
        param: The parameter that it came from.
        is_compact: Whether JSON shall have no whitespace.
    """
    text = schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()
    return GrammarSpec(kind="json_schema", text=text, param=param, is_compact=is_compact)


def _structured_grammar(body: GenerationBody) -> GrammarSpec | None:
    """What vLLM's extensions ask for; `refusals` saw to it that they ask for one thing."""
    outputs = body.structured_outputs or StructuredOutputs()
    prefix = "structured_outputs." if body.structured_outputs is not None else "guided_"
    schema = outputs.json_ if outputs.json_ is not None else body.guided_json
    if schema is not None:
        return schema_grammar(schema, f"{prefix}json", is_compact=outputs.disable_any_whitespace)
    if outputs.json_object:
        return GrammarSpec(kind="json_object", param=f"{prefix}json_object", is_compact=outputs.disable_any_whitespace)
    if regex := outputs.regex or body.guided_regex:
        return GrammarSpec(kind="regex", text=regex, param=f"{prefix}regex")
    if choice := outputs.choice or body.guided_choice:
        return GrammarSpec(kind="choice", text=msgspec.json.encode(choice).decode(), param=f"{prefix}choice")
    if grammar := outputs.grammar or body.guided_grammar:
        return GrammarSpec(kind="grammar", text=grammar, param=f"{prefix}grammar")
    return None


def _sampling_params(
    body: GenerationBody,
    max_tokens: int | None,
    num_top_logprobs: int | None,
    grammar: GrammarSpec | None = None,
) -> SamplingParams:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(body.top_k, 0),
        min_p=body.min_p,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty,
        logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
        seed=body.seed,
        stop=stop,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        num_top_logprobs=num_top_logprobs,
        grammar=grammar or _structured_grammar(body),
    )
