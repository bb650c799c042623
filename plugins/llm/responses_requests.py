"""Turns bodies of ``/v1/responses`` into the runtime's input, and refuses by name what can't be honoured."""

from __future__ import annotations

from collections.abc import Sequence

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.generation import (
    ChatInput,
    ChatMessage,
    GrammarSpec,
    ImagePart,
    SamplingParams,
    ToolSpec,
)
from sixfold.plugins.llm.refusals import unsupported
from sixfold.plugins.llm.requests import schema_grammar
from sixfold.plugins.llm.responses_messages import as_messages, missing, with_one_system_turn
from sixfold.plugins.llm.responses_schema import InputItem, NamedFunction, ResponsesBody

_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = (_LOGPROBS, "reasoning.encrypted_content")
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
    messages += as_messages(earlier, "previous_response_id", remaining)
    messages += as_messages(input_items(body), "input", remaining)
    num_top = (body.top_logprobs or 0) if wants_logprobs(body) else None
    choice = body.tool_choice
    return ChatInput(
        messages=tuple(with_one_system_turn(messages)),
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
                raise missing(f"text.format.{name}")
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
