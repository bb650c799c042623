"""Turns bodies of ``/v1/responses`` into the runtime's input, and refuses by name what can't be honoured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.generation import (
    ChatInput,
    ChatMessage,
    GrammarSpec,
    ImagePart,
    SamplingParams,
    ToolCall,
    ToolSpec,
)
from sixfold.plugins.llm.image_parts import ImageReference
from sixfold.plugins.llm.refusals import check_arguments, unsupported
from sixfold.plugins.llm.requests import schema_grammar
from sixfold.plugins.llm.responses_schema import ContentPart, InputItem, NamedFunction, ResponsesBody

_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = (_LOGPROBS, "reasoning.encrypted_content")
_IMAGE_PART = "input_image"
_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_UNSUPPORTED = (
    ("access_programs", "There are none."),
    ("background", "Run it in the foreground, or stream."),
    ("background_options", "Run it in the foreground, or stream."),
    ("context_management", "Send what the model shall read."),
    ("conversation", "Use 'previous_response_id'."),
    ("image", "Only text is served."),
    ("max_tool_calls", "There are no built-in tools."),
    ("moderation", "Moderation is not supported."),
    ("prompt", "There are no stored prompts; send 'instructions' and 'input'."),
    ("prompt_cache_options", "The cache needs no options."),
)


def check_response(body: ResponsesBody) -> None:
    """Refuses what a request asks in vain.

    Raises:
        InvalidRequest: Names the parameter.
    """
    for param, reason in _UNSUPPORTED:
        if getattr(body, param) not in (None, False):
            raise unsupported(param, reason)
    for name, value in body.reasoning or ():
        if value is not None:
            raise unsupported(f"reasoning.{name}", "Set what the model's template knows in chat_template_kwargs.")
    if body.text is not None and body.text.verbosity is not None:
        raise unsupported("text.verbosity", "Ask for a short or long answer in the instructions instead.")
    for place, name in enumerate(body.include or ()):
        if name not in _INCLUDABLE:
            raise unsupported(f"include.{place}", f"Only {_LOGPROBS!r} can be included.")
    if body.top_logprobs is not None and not wants_logprobs(body):
        raise InvalidRequest(f"'top_logprobs' needs 'include': [{_LOGPROBS!r}].", param="top_logprobs")
    if body.truncation not in (None, "disabled"):
        raise unsupported("truncation", 'Only "disabled": nothing is cut without being told.')
    if body.service_tier not in (None, "auto", "default"):
        raise unsupported("service_tier", 'Only "auto" and "default" are served.')
    if body.stream_options is not None:
        if not body.stream:
            raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")
        if body.stream_options.include_obfuscation:
            raise unsupported("stream_options.include_obfuscation", "Leave it out or send false.")
    _check_format(body)
    _check_tools(body)


def wants_logprobs(body: ResponsesBody) -> bool:
    """Whether log probabilities were asked for."""
    return _LOGPROBS in (body.include or ())


def input_items(body: ResponsesBody) -> tuple[InputItem, ...]:
    """What the request adds to the conversation."""
    if isinstance(body.input, str):
        return (InputItem(role="user", content=body.input),)
    return tuple(body.input)


def response_images(items: Sequence[InputItem], param: str) -> Iterator[ImageReference]:
    """The images of a conversation's messages, in order.

    Raises:
        InvalidRequest: An image is named in a way, or stands in a place, that is not served.
    """
    for index, item in enumerate(items):
        if item.type != "message" or isinstance(item.content, str):
            continue
        for place, part in enumerate(item.content or ()):
            path = f"{param}.{index}.content.{place}"
            if part.type == _IMAGE_PART:
                if item.role != "user":
                    raise unsupported(f"{path}.type", "Only messages of the role 'user' have images.")
                for name in part.model_extra or ():
                    raise unsupported(f"{path}.{name}", "Send the image in 'image_url', as a data URL for one.")
                yield ImageReference(
                    url=_needed(part.image_url, f"{path}.image_url"),
                    detail="low" if part.detail == "low" else "auto",
                    param=f"{path}.image_url",
                )


def response_input(
    body: ResponsesBody,
    earlier: Sequence[InputItem],
    adapter: str | None = None,
    images: Sequence[ImagePart] = (),
) -> ChatInput:
    """The input of a request that `check_response` let pass.

    Args:
        body: The request.
        earlier: The conversation that it continues.
        adapter: As in `ChatInput`.
        images: Those of `response_images`, of the earlier items first.

    Raises:
        InvalidRequest: An item of the input can't be read.
    """
    messages = [ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    remaining = iter(images)
    messages += _messages(earlier, "previous_response_id", remaining)
    messages += _messages(input_items(body), "input", remaining)
    num_top = (body.top_logprobs or 0) if wants_logprobs(body) else None
    choice = body.tool_choice
    return ChatInput(
        messages=tuple(_with_one_system_turn(messages)),
        adapter=adapter,
        params=SamplingParams(
            max_tokens=body.max_output_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=None if body.top_k is None else max(body.top_k, 0),
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            seed=body.seed,
            num_top_logprobs=num_top,
            grammar=_grammar(body),
        ),
        stream=bool(body.stream),
        template_kwargs=body.chat_template_kwargs or {},
        tools=()
        if choice == "none"
        else tuple(
            ToolSpec(
                name=tool.name, description=tool.description, parameters=tool.parameters, is_strict=bool(tool.strict)
            )
            for tool in body.tools or ()
        ),
        must_call=choice == "required" or isinstance(choice, NamedFunction),
        must_call_name=choice.name if isinstance(choice, NamedFunction) else None,
        allow_parallel_calls=body.parallel_tool_calls is not False,
    )


def _grammar(body: ResponsesBody) -> GrammarSpec | None:
    form = body.text.format if body.text is not None else None
    if form is None or form.type == "text":
        return None
    if form.schema_ is None:
        return GrammarSpec(kind="json_object", param="text.format")
    return schema_grammar(form.schema_, "text.format.schema")


def _check_format(body: ResponsesBody) -> None:
    form = body.text.format if body.text is not None else None
    if form is None:
        return
    if form.type == "json_schema":
        for name, value in (("name", form.name), ("schema", form.schema_)):
            if value is None:
                raise _missing(f"text.format.{name}")
    elif form.schema_ is not None:
        raise InvalidRequest("'text.format.schema' goes with the type 'json_schema'.", param="text.format.schema")


def _check_tools(body: ResponsesBody) -> None:
    names = [tool.name for tool in body.tools or ()]
    for place, tool in enumerate(body.tools or ()):
        if tool.name in names[:place]:
            raise InvalidRequest(f"Two tools have the name {tool.name!r}.", param=f"tools.{place}.name")
        if (tool.parameters or {}).get("type", "object") != "object":
            raise InvalidRequest("The parameters of a function are an object.", param=f"tools.{place}.parameters.type")
    choice = body.tool_choice
    if choice in (None, "none", "auto"):
        return
    if not names:
        raise InvalidRequest("'tool_choice' is only allowed with 'tools'.", param="tool_choice")
    if isinstance(choice, NamedFunction) and choice.name not in names:
        raise InvalidRequest(
            f"There is no tool {choice.name[:64]!r}; there are {', '.join(names)}.", param="tool_choice"
        )


def _messages(items: Sequence[InputItem], param: str, images: Iterator[ImagePart]) -> list[ChatMessage]:
    """Items as turns: calls and reasoning belong to the assistant's turn that they stand beside."""
    messages: list[ChatMessage] = []
    reasoning: str | None = None
    for place, item in enumerate(items):
        path = f"{param}.{place}"
        if item.type == "reasoning":
            reasoning = _text([*(item.summary or ()), *_parts(item.content)], f"{path}.content") or None
        elif item.type == "message":
            role = _needed(item.role, f"{path}.role")
            text = _text(item.content, f"{path}.content", with_images=True)
            is_assistant = role == "assistant"
            messages.append(
                ChatMessage(
                    role="system" if role == "developer" else role,
                    content=text,
                    parts=_with_images(_parts(item.content), images),
                    reasoning=reasoning if is_assistant else None,
                )
            )
            reasoning = None
        elif item.type == "function_call":
            arguments = _needed(item.arguments, f"{path}.arguments")
            check_arguments(arguments, f"{path}.arguments")
            call = ToolCall(
                id=_needed(item.call_id, f"{path}.call_id"),
                name=_needed(item.name, f"{path}.name"),
                arguments=arguments,
            )
            _add_call(messages, call, reasoning)
            reasoning = None
        elif item.type == "function_call_output":
            output = _text(item.output, f"{path}.output")
            messages.append(
                ChatMessage(role="tool", content=output, tool_call_id=_needed(item.call_id, f"{path}.call_id"))
            )
        else:
            raise unsupported(
                f"{path}.type",
                "Only items of type message, function_call, function_call_output and reasoning are served, "
                f"not {item.type[:40]!r}.",
            )
    return messages


def _add_call(messages: list[ChatMessage], call: ToolCall, reasoning: str | None) -> None:
    if messages and messages[-1].role == "assistant" and reasoning is None:
        last = messages.pop()
        text, reasoning, calls = last.content, last.reasoning, last.tool_calls
    else:
        text, calls = "", ()
    messages.append(ChatMessage(role="assistant", content=text, reasoning=reasoning, tool_calls=(*calls, call)))


def _with_one_system_turn(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Templates take one system message, and first: instructions and system items at the beginning become one."""
    first = 0
    while first < len(messages) and messages[first].role == "system":
        first += 1
    if first < 2:
        return list(messages)
    text = "\n\n".join(message.content for message in messages[:first])
    return [ChatMessage(role="system", content=text), *messages[first:]]


def _with_images(parts: Sequence[ContentPart], images: Iterator[ImagePart]) -> tuple[str | ImagePart, ...]:
    if not any(part.type == _IMAGE_PART for part in parts):
        return ()
    return tuple(next(images) if part.type == _IMAGE_PART else part.text or "" for part in parts)


def _parts(content: str | Sequence[ContentPart] | None) -> Sequence[ContentPart]:
    if isinstance(content, str):
        return (ContentPart(type="text", text=content),)
    return content or ()


def _text(content: str | Sequence[ContentPart] | None, param: str, *, with_images: bool = False) -> str:
    if content is None:
        raise _missing(param)
    if isinstance(content, str):
        return content
    for place, part in enumerate(content):
        if with_images and part.type == _IMAGE_PART:
            continue
        if part.type not in _TEXT_PARTS:
            raise unsupported(
                f"{param}.{place}.type",
                f"Only parts of text, and images of the user, are served, not {part.type[:40]!r}.",
            )
        if part.text is None:
            raise _missing(f"{param}.{place}.text")
    return "".join(part.text or "" for part in content)


def _needed(value: str | None, param: str) -> str:
    if value is None:
        raise _missing(param)
    return value


def _missing(param: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter {param!r}.", param=param, code="missing_required_parameter")
