"""Names every parameter that OpenAI has and this server can't honour yet; each is a 400, none is dropped."""

from __future__ import annotations

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.schema import ChatBody, CompletionBody, GenerationBody, Message

_UNSUPPORTED_CHAT = (
    ("audio", "Audio output is not served."),
    ("function_call", "Function calling is not supported yet."),
    ("functions", "Function calling is not supported yet."),
    ("moderation", "Moderation is not supported."),
    ("prediction", "Predicted outputs are not supported yet."),
    ("reasoning_effort", "Set what the model's template knows in chat_template_kwargs instead."),
    ("tools", "Tool calling is not supported yet."),
    ("verbosity", "Ask for a short or long answer in the messages instead."),
    ("web_search_options", "Web search is not supported."),
)
_EMPTY_IN_MESSAGES = ("audio", "function_call", "tool_calls", "tool_call_id", "refusal")


def unsupported(param: str, reason: str) -> InvalidRequest:
    """The error for a parameter that can't be honoured."""
    return InvalidRequest(f"Unsupported parameter {param!r}: {reason}", param=param, code="unsupported_parameter")


def check_chat(body: ChatBody) -> None:
    """Refuses what a chat request asks in vain.

    Raises:
        InvalidRequest: Names the parameter.
    """
    _check_stream(body)
    for param, reason in _UNSUPPORTED_CHAT:
        if getattr(body, param) not in (None, []):
            raise unsupported(param, reason)
    if body.tool_choice not in (None, "none", "auto"):
        raise unsupported("tool_choice", "Tool calling is not supported yet.")
    if body.response_format is not None and body.response_format != {"type": "text"}:
        raise unsupported("response_format", 'Structured output is not supported yet; use {"type": "text"}.')
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
    if body.best_of not in (None, body.n):
        raise unsupported("best_of", "Only the value of 'n' is served; ask for n answers and choose among them.")
    if body.suffix:
        raise unsupported("suffix", "Insertion is not supported; put the model's own infill tokens in the prompt.")
    if body.echo and body.logprobs is not None:
        raise unsupported("echo", "Log probabilities of prompts are not supported yet; leave out 'logprobs'.")


def _check_stream(body: GenerationBody) -> None:
    if body.stream_options is None:
        return
    if not body.stream:
        raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")
    if body.stream_options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation", "Leave it out or send false.")


def _check_message(message: Message, path: str) -> None:
    if message.role in ("tool", "function"):
        raise unsupported(f"{path}.role", f"Messages of role {message.role!r} need tools, which are not supported yet.")
    for name in _EMPTY_IN_MESSAGES:
        if getattr(message, name) not in (None, []):
            raise unsupported(f"{path}.{name}", "Only text messages are supported yet.")
    if message.content is None:
        raise InvalidRequest(f"Missing required parameter '{path}.content'.", param=f"{path}.content")
    if isinstance(message.content, str):
        return
    for place, part in enumerate(message.content):
        param = f"{path}.content.{place}"
        if part.type != "text":
            raise unsupported(f"{param}.type", f"Only parts of type 'text' are served, not {part.type[:40]!r}.")
        if part.text is None:
            raise InvalidRequest(f"Missing required parameter '{param}.text'.", param=f"{param}.text")
        if part.model_extra:
            name = next(iter(part.model_extra))
            raise InvalidRequest(
                f"Unknown parameter '{param}.{name}'.", param=f"{param}.{name}", code="unknown_parameter"
            )
