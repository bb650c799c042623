"""Items of a ``/v1/responses`` conversation as the turns and images of a chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.generation import ChatMessage, ImagePart, ToolCall
from sixfold.plugins.llm.image_parts import ImageReference
from sixfold.plugins.llm.refusals import check_arguments, unsupported
from sixfold.plugins.llm.responses_schema import ContentPart, InputItem

_IMAGE_PART = "input_image"
_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


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


def as_messages(items: Sequence[InputItem], param: str, images: Iterator[ImagePart]) -> list[ChatMessage]:
    """Items as turns: calls and reasoning belong to the assistant's turn that they stand beside.

    Args:
        items: A conversation, or a part of it.
        param: What to name in an error.
        images: Those of `response_images`; as many are taken as the items have.

    Raises:
        InvalidRequest: An item lacks something, or is of a kind that is not served.
    """
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


def with_one_system_turn(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
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
        raise missing(param)
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
            raise missing(f"{param}.{place}.text")
    return "".join(part.text or "" for part in content)


def _needed(value: str | None, param: str) -> str:
    if value is None:
        raise missing(param)
    return value


def missing(param: str) -> InvalidRequest:
    """The error of a parameter that is not there."""
    return InvalidRequest(f"Missing required parameter {param!r}.", param=param, code="missing_required_parameter")
