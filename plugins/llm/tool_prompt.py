"""Tells a model about tools in plain messages, for templates that know none.

The words are those of the Hermes format, on which many small models were trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from sixfold.plugins.llm.generation import ChatMessage, ToolSpec
from sixfold.plugins.llm.tool_formats import HERMES


def with_tools_in_words(messages: Sequence[ChatMessage], tools: Sequence[ToolSpec]) -> list[ChatMessage]:
    """The conversation with tools, calls and their results written out as text."""
    turns: list[ChatMessage] = []
    for message in messages:
        if message.role == "tool":
            _add_result(turns, message)
        elif message.tool_calls:
            turns.append(ChatMessage(role=message.role, content=_calls_in_words(message), name=message.name))
        else:
            turns.append(message)
    if not tools:
        return turns
    prompt = _tools_in_words(tools)
    if turns and turns[0].role == "system":
        return [ChatMessage(role="system", content=f"{turns[0].content}\n\n{prompt}"), *turns[1:]]
    return [ChatMessage(role="system", content=prompt), *turns]


def tool_object(tool: ToolSpec) -> dict[str, object]:
    """A tool as OpenAI's body has it, which templates expect."""
    function: dict[str, object] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def _tools_in_words(tools: Sequence[ToolSpec]) -> str:
    listed = "\n".join(json.dumps(tool_object(tool), ensure_ascii=False) for tool in tools)
    call = '{"name": <function-name>, "arguments": <args-json-object>}'
    return (
        "You can call functions to help with the user's question. These are their signatures:\n"
        f"<tools>\n{listed}\n</tools>\n"
        f"To call one, write its name and arguments as JSON:\n{HERMES.opens}\n{call}\n{HERMES.closes}"
    )


def _calls_in_words(message: ChatMessage) -> str:
    calls = [
        f'{HERMES.opens}\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n{HERMES.closes}'
        for call in message.tool_calls
    ]
    return "\n".join([message.content, *calls] if message.content else calls)


def _add_result(turns: list[ChatMessage], message: ChatMessage) -> None:
    """Results are said by the user: many templates know no role for them. Those of one turn stay together."""
    text = f"<tool_response>\n{message.content}\n</tool_response>"
    last = turns[-1] if turns else None
    if last is not None and last.role == "user" and not last.parts and last.content.endswith("</tool_response>"):
        turns[-1] = ChatMessage(role="user", content=f"{last.content}\n{text}")
    else:
        turns.append(ChatMessage(role="user", content=text))
