"""Structured outputs, tools and reasoning on the wire of chats: OpenAI's shapes, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from sixfold.core.messages import Event
from sixfold.plugins.llm.generation import ChatMessage, GrammarSpec, ToolCall, ToolSpec
from tests.plugins.llm.wire_fakes import CHAT, LOGPROB, chat, complete, delta, finished

HERMES = {"tool_call_parser": "hermes", "reasoning_parser": "none"}
THINKS = {"tool_call_parser": "hermes", "reasoning_parser": "think"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now", "strict": True}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "integer"}}}


def pieces(text: str, reason: str = "stop", **first: Any) -> list[list[Event]]:
    """A stream that brings a text three characters at a time."""
    parts = [text[i : i + 3] for i in range(0, len(text), 3)]
    events: list[list[Event]] = [[delta(part, **(first if i == 0 else {}))] for i, part in enumerate(parts)]
    return [*events, [delta("", finish_reason=reason), finished(text)]]


@pytest.mark.parametrize(
    ("more", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, GrammarSpec(kind="json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            GrammarSpec(kind="json_schema", text=json.dumps(SCHEMA), param="response_format.json_schema.schema"),
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, GrammarSpec(kind="json_object")),
        (  # as huggingface-hub's InferenceClient writes the one before
            {"response_format": {"type": "json_object", "value": SCHEMA}},
            GrammarSpec(kind="json_schema", text=json.dumps(SCHEMA), param="response_format.value"),
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            GrammarSpec(kind="json_schema", text=json.dumps(SCHEMA), param="structured_outputs.json", is_compact=True),
        ),
        (
            {"structured_outputs": {"json_object": True}},
            GrammarSpec(kind="json_object", param="structured_outputs.json_object"),
        ),
        (
            {"structured_outputs": {"regex": "a+"}},
            GrammarSpec(kind="regex", text="a+", param="structured_outputs.regex"),
        ),
        (
            {"structured_outputs": {"choice": ["a", "b"]}},
            GrammarSpec(kind="choice", text='["a","b"]', param="structured_outputs.choice"),
        ),
        (
            {"structured_outputs": {"grammar": "start: x"}},
            GrammarSpec(kind="grammar", text="start: x", param="structured_outputs.grammar"),
        ),
        ({"guided_json": "{}"}, GrammarSpec(kind="json_schema", text="{}", param="guided_json")),
        ({"guided_regex": "a"}, GrammarSpec(kind="regex", text="a", param="guided_regex")),
        ({"guided_choice": ["a"]}, GrammarSpec(kind="choice", text='["a"]', param="guided_choice")),
        ({"guided_grammar": "g"}, GrammarSpec(kind="grammar", text="g", param="guided_grammar")),
    ],
)
async def test_the_form_of_an_answer_reaches_the_runtime(more: dict[str, Any], grammar: GrammarSpec | None) -> None:
    call, _answer = await chat(CHAT | more, [[finished("x")]])
    found = call.input.params.grammar
    if grammar is not None and grammar.kind == "json_schema":
        assert list(json.loads(found.text)) == list(json.loads(grammar.text))
        assert (found.param, found.is_compact) == (grammar.param, grammar.is_compact)
    else:
        assert found == grammar
    if "response_format" not in more:
        call, _answer = await complete({"model": "m", "prompt": "x"} | more, [[finished("x")]])
        assert call.input.params.grammar == found


async def test_a_schema_keeps_the_order_of_its_members() -> None:
    call, _answer = await chat(CHAT | {"guided_json": SCHEMA}, [[finished("x")]])
    assert list(json.loads(call.input.params.grammar.text)["properties"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("choice", "must_call", "name", "num_tools"),
    [
        (None, False, None, 2),
        ("auto", False, None, 2),
        ("none", False, None, 0),
        ("required", True, None, 2),
        ({"type": "function", "function": {"name": "now"}}, True, "now", 2),
    ],
)
async def test_tools_and_the_choice_among_them_reach_the_runtime(
    choice: Any, must_call: bool, name: str | None, num_tools: int
) -> None:
    body = CHAT | {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    call, _answer = await chat(body, [[finished("x")]], HERMES)
    assert (call.input.must_call, call.input.must_call_name, len(call.input.tools)) == (must_call, name, num_tools)
    assert not call.input.allow_parallel_calls
    if num_tools:
        assert call.input.tools[0] == ToolSpec(name="weather", description="Of a city.", parameters=PARAMETERS)
        assert call.input.tools[1].is_strict


async def test_earlier_calls_and_their_results_reach_the_runtime() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}]
    messages = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "Hm."},
        {"role": "tool", "content": "Noon.", "tool_call_id": "c1"},
    ]
    call, _answer = await chat({"model": "m", "messages": messages}, [[finished("x")]], HERMES)
    assert call.input.messages[1] == ChatMessage(
        role="assistant", content="", reasoning="Hm.", tool_calls=(ToolCall(id="c1", name="now", arguments="{}"),)
    )
    assert call.input.messages[2] == ChatMessage(role="tool", content="Noon.", tool_call_id="c1")


async def test_an_answer_that_calls_has_no_content_and_says_so() -> None:
    _call, answer = await chat(CHAT | {"tools": TOOLS}, [[finished(CALL + "\n" + CALL)]], HERMES)
    choice = ChatCompletion.model_validate(answer, strict=True).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    assert len({call.id for call in choice.message.tool_calls}) == 2
    for call in choice.message.tool_calls:
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
    assert "reasoning_content" not in answer["choices"][0]["message"]


async def test_a_streamed_call_brings_its_name_first_and_its_arguments_in_pieces() -> None:
    body = CHAT | {"tools": TOOLS, "stream": True}
    _call, chunks = await chat(body, pieces("Look: " + CALL + CALL), HERMES)
    parsed = [ChatCompletionChunk.model_validate(chunk).choices[0] for chunk in chunks]
    assert parsed[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in parsed) == "Look: "
    calls = [call for choice in parsed for call in choice.delta.tool_calls or ()]
    for index in (0, 1):
        first, *rest = [call for call in calls if call.index == index]
        assert first.id
        assert first.type == "function"
        assert first.function is not None
        assert (first.function.name, first.function.arguments) == ("weather", "")
        assert len(rest) > 3
        assert all(call.id is None and call.function is not None and call.function.name is None for call in rest)
        text = "".join((call.function.arguments or "") for call in rest if call.function)
        assert json.loads(text) == {"city": "Rome"}
    assert [choice.finish_reason for choice in parsed[:-1]] == [None] * (len(parsed) - 1)
    assert parsed[-1].finish_reason == "tool_calls"


async def test_a_call_that_was_cut_says_length() -> None:
    _call, chunks = await chat(CHAT | {"tools": TOOLS, "stream": True}, pieces(CALL[:-30], "length"), HERMES)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert any(chunk["choices"][0]["delta"].get("tool_calls") for chunk in chunks)


async def test_without_tools_what_looks_like_a_call_is_text() -> None:
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        _call, answer = await chat(CHAT | more, [[finished(CALL)]], HERMES)
        assert answer["choices"][0]["message"]["content"] == CALL
        assert answer["choices"][0]["finish_reason"] == "stop"


async def test_reasoning_is_kept_apart_under_both_of_its_names() -> None:
    text = "<think>\nHm.\n</think>\n\nYes."
    _call, answer = await chat(CHAT, [[finished(text)]], THINKS)
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == ("Yes.", "Hm.", "Hm.")
    _call, chunks = await chat(CHAT | {"stream": True}, pieces(text), THINKS)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(d.get("reasoning_content") or "" for d in deltas) == "Hm."
    assert "".join(d.get("reasoning") or "" for d in deltas) == "Hm."
    assert "".join(d.get("content") or "" for d in deltas) == "Yes."


async def test_reasoning_that_the_prompt_opened_needs_no_opening_marker() -> None:
    events = pieces("Hm.</think>Yes.", opens_in_reasoning=True)
    _call, chunks = await chat(CHAT | {"stream": True}, events, THINKS)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(d.get("reasoning") or "" for d in deltas) == "Hm."


async def test_log_probabilities_of_held_back_tokens_are_not_lost() -> None:
    body = CHAT | {"stream": True, "logprobs": True, "tools": TOOLS}
    events: list[list[Event]] = [[delta(part, logprobs=(LOGPROB,))] for part in ("a ", "<tool", "_nothing")]
    events.append([delta("", finish_reason="stop"), finished("a <tool_nothing")])
    _call, chunks = await chat(body, events, HERMES)
    shown = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert sum(len(item["content"]) for item in shown if item) == 3
