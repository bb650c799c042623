"""Names every parameter that OpenAI has and this server can't honour yet; each is a 400, none is dropped."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.schema import ChatBody, CompletionBody, GenerationBody, Message
from sixfold.plugins.llm.schema_structured import NamedToolChoice

_UNSUPPORTED_CHAT = (
    ("audio", "Audio output is not served."),
    ("function_call", "It is OpenAI's older name; send 'tool_choice'."),
    ("functions", "It is OpenAI's older name; send 'tools'."),
    ("moderation", "Moderation is not supported."),
    ("prediction", "Predicted outputs are not supported yet."),
    ("reasoning_effort", "Set what the model's template knows in chat_template_kwargs instead."),
    ("verbosity", "Ask for a short or long answer in the messages instead."),
    ("web_search_options", "Web search is not supported."),
)
_EMPTY_IN_MESSAGES = ("audio", "function_call", "refusal")

_ONLY_OF_ROLE = (
    ("tool_calls", "assistant"),
    ("reasoning_content", "assistant"),
    ("reasoning", "assistant"),
    ("tool_call_id", "tool"),
)
_PART_FIELDS = {"text": "text", "image_url": "image_url"}
_STRUCTURED = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


def unsupported(param: str, reason: str) -> InvalidRequest:
    """The error for a parameter that can't be honoured."""
    return InvalidRequest(f"Unsupported parameter {param!r}: {reason}", param=param, code="unsupported_parameter")


def text_only(param: str) -> InvalidRequest:
    """The error for an image that the model could not look at."""
    return InvalidRequest(
        "This model reads text only. Leave images out, or ask a model that reads them: /v1/models lists which do.",
        param=param,
        code="unsupported_parameter",
    )


def check_image_count(params: Sequence[str], max_images: int) -> None:
    """Refuses the first image that is one too many.

    Args:
        params: Where each image stands.
        max_images: Of a request.
    """
    if len(params) > max_images:
        raise InvalidRequest(
            f"The request has {len(params)} images; this model takes at most {max_images} at once.",
            param=params[max_images],
        )


def check_chat(body: ChatBody) -> None:
    """Refuses what a chat request asks in vain.

    Raises:
        InvalidRequest: Names the parameter.
    """
    _check_stream(body)
    _check_kv_transfer(body)
    for param, reason in _UNSUPPORTED_CHAT:
        if getattr(body, param) not in (None, []):
            raise unsupported(param, reason)
    _check_form(body)
    _check_tools(body)
    if body.modalities is not None and body.modalities != ["text"]:
        raise unsupported("modalities", 'Only ["text"] is served.')
    if body.store:
        raise unsupported("store", "Answers are not stored; leave it out or send false.")
    if body.service_tier not in (None, "auto", "default"):
        raise unsupported("service_tier", 'Only "auto" and "default" are served.')
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' differ. Send only 'max_completion_tokens'.", param="max_tokens"
        )
    for index, message in enumerate(body.messages):
        _check_message(message, f"messages.{index}")


def check_completion(body: CompletionBody) -> None:
    """Refuses what a completion request asks in vain.

    Raises:
        InvalidRequest: Names the parameter.
    """
    _check_stream(body)
    _check_kv_transfer(body)
    is_many = not isinstance(body.prompt, str) and len(body.prompt) > 1 and not isinstance(body.prompt[0], int)
    if body.kv_transfer_params is not None and is_many:
        raise unsupported("kv_transfer_params", "Send one prompt a request.")
    _check_structured(body)
    if body.best_of not in (None, body.n):
        raise unsupported("best_of", "Only the value of 'n' is served; ask for n answers and choose among them.")
    if body.suffix:
        raise unsupported("suffix", "Insertion is not supported; put the model's own infill tokens in the prompt.")


def _check_stream(body: GenerationBody) -> None:
    if body.stream_options is None:
        return
    if not body.stream:
        raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")
    if body.stream_options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation", "Leave it out or send false.")


def _check_kv_transfer(body: GenerationBody) -> None:
    wanted = body.kv_transfer_params
    if wanted is not None and wanted.do_remote_decode and body.stream:
        raise unsupported("kv_transfer_params", "A stream has no place for the handle; leave out 'stream'.")


def _check_form(body: ChatBody) -> None:
    """At most one demand on the answer's form, and a response format that is complete."""
    form = body.response_format
    is_free = form is None or form.type == "text"
    if form is not None and (form.type == "json_schema") != (form.json_schema is not None):
        raise InvalidRequest(
            "'response_format.json_schema' goes with the type 'json_schema'.", param="response_format.json_schema"
        )
    if form is not None and form.value is not None and form.type != "json_object":
        raise InvalidRequest("'response_format.value' goes with the type 'json_object'.", param="response_format.value")
    _check_structured(body, others=() if is_free else ("response_format",))


def _check_structured(body: GenerationBody, others: tuple[str, ...] = ()) -> None:
    given = [*others, *(name for name in _STRUCTURED if getattr(body, name) is not None)]
    if len(given) > 1:
        raise InvalidRequest(f"Send only one of {' and '.join(map(repr, given))}.", param=given[-1])
    outputs = body.structured_outputs
    if outputs is not None:
        kinds = (outputs.json_, outputs.regex, outputs.choice, outputs.grammar, outputs.json_object or None)
        if sum(kind is not None for kind in kinds) != 1:
            raise InvalidRequest(
                "'structured_outputs' takes exactly one of json, regex, choice, grammar and json_object.",
                param="structured_outputs",
            )


def _check_tools(body: ChatBody) -> None:
    names = [tool.function.name for tool in body.tools or ()]
    for place, tool in enumerate(body.tools or ()):
        param = f"tools.{place}.function"
        if tool.function.name in names[:place]:
            raise InvalidRequest(f"Two tools have the name {tool.function.name!r}.", param=f"{param}.name")
        if (tool.function.parameters or {}).get("type", "object") != "object":
            raise InvalidRequest("The parameters of a function are an object.", param=f"{param}.parameters.type")
    choice = body.tool_choice
    if choice in (None, "none", "auto"):
        return
    if not names:
        raise InvalidRequest("'tool_choice' is only allowed with 'tools'.", param="tool_choice")
    if isinstance(choice, NamedToolChoice) and choice.function.name not in names:
        raise InvalidRequest(
            f"There is no tool {choice.function.name[:64]!r}; there are {', '.join(names)}.", param="tool_choice"
        )


def _check_message(message: Message, path: str) -> None:
    if message.role == "function":
        raise unsupported(f"{path}.role", "It is OpenAI's older name; send the role 'tool'.")
    for name in _EMPTY_IN_MESSAGES:
        if getattr(message, name) not in (None, []):
            raise unsupported(f"{path}.{name}", "Messages have text and images only.")
    if message.role == "tool" and message.tool_call_id is None:
        raise InvalidRequest(f"Missing required parameter '{path}.tool_call_id'.", param=f"{path}.tool_call_id")
    for name, role in _ONLY_OF_ROLE:
        if getattr(message, name) not in (None, []) and message.role != role:
            raise InvalidRequest(f"Only messages of role {role!r} have {name!r}.", param=f"{path}.{name}")
    for place, call in enumerate(message.tool_calls or ()):
        check_arguments(call.function.arguments, f"{path}.tool_calls.{place}.function.arguments")
    _check_content(message, path)


def check_arguments(arguments: str, param: str) -> None:
    """Refuses arguments of a call that are no JSON object: a template could not write them.

    Raises:
        InvalidRequest: Names ``param``.
    """
    try:
        value: object = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest("The arguments of a call are the text of a JSON object.", param=param)


def _check_content(message: Message, path: str) -> None:
    if message.content is None:
        if message.tool_calls:
            return
        raise InvalidRequest(f"Missing required parameter '{path}.content'.", param=f"{path}.content")
    if isinstance(message.content, str):
        return
    for place, part in enumerate(message.content):
        param = f"{path}.content.{place}"
        if part.type not in _PART_FIELDS:
            raise unsupported(
                f"{param}.type", f"Only parts of type 'text' and 'image_url' are served, not {part.type[:40]!r}."
            )
        if part.type == "image_url" and message.role != "user":
            raise unsupported(f"{param}.type", "Only messages of the role 'user' have images.")
        needed = _PART_FIELDS[part.type]
        if getattr(part, needed) is None:
            raise InvalidRequest(f"Missing required parameter '{param}.{needed}'.", param=f"{param}.{needed}")
        others = [name for name in _PART_FIELDS.values() if name != needed and getattr(part, name) is not None]
        for name in (*others, *(part.model_extra or ())):
            raise InvalidRequest(
                f"Unknown parameter '{param}.{name}'.", param=f"{param}.{name}", code="unknown_parameter"
            )
