"""Reasoning, text and calls come apart the same way, however the text is cut into pieces."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sixfold.plugins.llm.answer_parser import ParsedAnswer, ParserChoice
from sixfold.plugins.llm.answer_parts import ArgumentsPart, CallStart, Part
from sixfold.plugins.llm.generation import ChatInput, ToolSpec
from sixfold.plugins.llm.tool_formats import HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, ToolFormat, detect_tool_format

NAMES = ("f", "get_weather")
CALL = '{"name": "f", "arguments": {"a": "}\\"{", "b": [1, {"c": 2}]}}'
ARGUMENTS = '{"a": "}\\"{", "b": [1, {"c": 2}]}'


def parse(
    text: str, format: ToolFormat | None = HERMES, *, cuts: Any = (), thinks: bool = False, opens: bool = False
) -> Any:
    choice = ParserChoice(tool_format=format, tool_names=NAMES, thinks=thinks)
    parser = choice.parser(opens_in_reasoning=opens)
    parts: list[Part] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        parts += parser.push(text[begin:end])
    parts += parser.flush()
    return parts


def whole(text: str, format: ToolFormat | None = HERMES, **more: Any) -> tuple[str, list[tuple[str, str]]]:
    answer = ParsedAnswer.of(parse(text, format, **more))
    return answer.text, [(call.name, call.arguments) for call in answer.calls]


CASES: list[tuple[ToolFormat | None, str, tuple[str, list[tuple[str, str]]]]] = [
    (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", ("", [("f", ARGUMENTS)])),
    (
        HERMES,
        f"Let me see. <tool_call>{CALL}</tool_call>\n<tool_call>\n{CALL}\n</tool_call>\n",
        ("Let me see. ", [("f", ARGUMENTS)] * 2),
    ),
    (HERMES, f"<tool_call>{CALL}</tool_call> And so on.", (" And so on.", [("f", ARGUMENTS)])),
    (HERMES, f"<tool_call>\n{CALL}", ("", [("f", ARGUMENTS)])),  # the end marker was forgotten
    (HERMES, '<tool_call>{"name": "f"}</tool_call>', ("", [("f", "{}")])),
    (HERMES, '<tool_call>{"arguments": {"a":1} , "name": "f"}</tool_call>', ("", [("f", '{"a":1}')])),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", [("f", '{"a": 1}')])),
    (HERMES, '<tool_call>{"name": "f", "arguments": null}</tool_call>', ("", [("f", "{}")])),
    (HERMES, '<tool_call>{"name": "unknown", "arguments": {}}', ('<tool_call>{"name": "unknown"', [])),
    (HERMES, "<tool_call>\nnot json</tool_call>", ("<tool_call>\nnot json</tool_call>", [])),
    (HERMES, "a < b and <tool", ("a < b and <tool", [])),
    (HERMES, '<tool_call>{"na', ('<tool_call>{"na', [])),  # cut before it was a call
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "x', ("", [("f", '{"a": "x')])),  # cut within
    (LLAMA3, '{"name": "f", "parameters": {"a": 1}}', ("", [("f", '{"a": 1}')])),
    (LLAMA3, '<|python_tag|>{"name": "f", "parameters": {}}', ("", [("f", "{}")])),
    (
        LLAMA3,
        f'{CALL}; {{"name": "get_weather", "parameters": {{}}}}',
        ("", [("f", ARGUMENTS), ("get_weather", "{}")]),
    ),
    (LLAMA3, 'The set {"name": "f"}', ('The set {"name": "f"}', [])),
    (LLAMA3, '{"name": "x"} tail', ('{"name": "x"} tail', [])),
    (MISTRAL, f"[TOOL_CALLS][{CALL}, {CALL}]", ("", [("f", ARGUMENTS)] * 2)),
    (MISTRAL, f"Yes. [TOOL_CALLS] [{CALL}]", ("Yes. ", [("f", ARGUMENTS)])),
    (MISTRAL_ARGS, '[TOOL_CALLS]f[ARGS]{"a": "}"}', ("", [("f", '{"a": "}"}')])),
    (
        MISTRAL_ARGS,
        'Yes.[TOOL_CALLS]f[CALL_ID]x1[ARGS]{"a": [{}, "\\"]"]}\n[TOOL_CALLS] get_weather[ARGS] {}',
        ("Yes.", [("f", '{"a": [{}, "\\"]"]}'), ("get_weather", "{}")]),
    ),
    (MISTRAL_ARGS, "[TOOL_CALLS]other[ARGS]{}", ("[TOOL_CALLS]other[ARGS]{}", [])),
    (MISTRAL_ARGS, "[TOOL_CALLS]f[ARGS]no object", ("[TOOL_CALLS]f[ARGS]no object", [])),
    (MISTRAL_ARGS, '[TOOL_CALLS]f[ARGS]{"a": 1', ("", [("f", '{"a": 1')])),  # cut within
    (None, CALL, (CALL, [])),
]


@pytest.mark.parametrize(("format", "text", "expected"), CASES)
@settings(max_examples=30)
@given(data=st.data())
def test_calls_and_text_come_apart_however_the_text_is_cut(
    format: ToolFormat | None, text: str, expected: Any, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=len(text))))
    found = whole(text, format, cuts=cuts)
    if expected[0].endswith('"unknown"'):  # what follows is text, too
        assert found == (text, [])
    else:
        assert found == expected


def test_the_name_comes_first_and_then_the_arguments_as_they_grow() -> None:
    text = f"<tool_call>\n{CALL}\n</tool_call>"
    parts = parse(text, cuts=range(1, len(text)))
    first, *rest = parts
    assert isinstance(first, CallStart)
    assert (first.index, first.name) == (0, "f")
    assert len(rest) == len(ARGUMENTS)
    assert all(isinstance(part, ArgumentsPart) and part.index == 0 for part in rest)
    assert json.loads("".join(part.text for part in rest)) == {"a": '}"{', "b": [1, {"c": 2}]}


def test_calls_of_mistral_have_ids_that_its_template_takes() -> None:
    (start, *_) = parse("[TOOL_CALLS]f[ARGS]{}", MISTRAL_ARGS)
    assert isinstance(start, CallStart)
    assert len(start.id) == 9
    (start, *_) = parse(f"[TOOL_CALLS][{CALL}]", MISTRAL)
    assert len(start.id) == 9
    assert start.id.isalnum()


@pytest.mark.parametrize(
    ("text", "opens", "reasoning", "answer"),
    [
        ("<think>\nHm.\n\nSo.\n</think>\n\nYes.", False, "Hm.\n\nSo.", "Yes."),
        ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("\n<think>Hm</think>Yes.", False, "Hm", "Yes."),
        ("\n\nJust this.", False, "", "\n\nJust this."),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("<think>never ends", False, "never ends", ""),
        ("<thin", False, "", "<thin"),
        ("A <think>x</think>", False, "", "A <think>x</think>"),
        ("a < b </thi", True, "a < b </thi", ""),
    ],
)
@settings(max_examples=30)
@given(data=st.data())
def test_reasoning_and_answer_come_apart_however_the_text_is_cut(
    text: str, opens: bool, reasoning: str, answer: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=len(text))))
    parsed = ParsedAnswer.of(parse(text, None, cuts=cuts, thinks=True, opens=opens))
    assert (parsed.reasoning, parsed.text) == (reasoning, answer)


def test_a_call_that_the_model_only_thinks_of_is_none() -> None:
    text = f"<think>I could <tool_call>{CALL}</tool_call></think><tool_call>{CALL}</tool_call>"
    answer = ParsedAnswer.of(parse(text, thinks=True))
    assert answer.reasoning == f"I could <tool_call>{CALL}</tool_call>"
    assert [call.arguments for call in answer.calls] == [ARGUMENTS]


def test_the_parsers_follow_from_the_models_details_and_the_request() -> None:
    details = {"tool_call_parser": "hermes", "reasoning_parser": "think"}
    chat = ChatInput(messages=())
    assert ParserChoice.of({}, chat).is_plain
    assert ParserChoice.of(details, chat) == ParserChoice(thinks=True)
    with_tools = ChatInput(messages=(), tools=(ToolSpec(name="f"),))
    assert ParserChoice.of(details, with_tools) == ParserChoice(tool_format=HERMES, tool_names=("f",), thinks=True)
    assert ParserChoice.of({"tool_call_parser": "none"}, with_tools).tool_format is None


@pytest.mark.parametrize(
    ("template", "format"),
    [
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", MISTRAL),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]{{ name }}[ARGS]", MISTRAL_ARGS),
        ('{{ tools }} {"name": function name, "parameters": dictionary of argument name and its value}', LLAMA3),
        ("{{ messages }}", None),
        ("{% if tools %}something new{% endif %}", None),
    ],
)
def test_the_format_of_calls_is_read_off_the_template(template: str, format: ToolFormat | None) -> None:
    assert detect_tool_format(template) == format
