"""Tools reach the model in the way it was taught, or in words, and a call that must come comes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sixfold.core.errors import InvalidRequest, RequestError
from sixfold.core.messages import Request
from sixfold.plugins.llm.answer_parser import ParsedAnswer, ParserChoice
from sixfold.plugins.llm.generation import (
    ChatInput,
    ChatMessage,
    Choice,
    CompletionInput,
    GrammarSpec,
    SamplingParams,
    ToolCall,
    ToolSpec,
)
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.text_codec import TextCodec

Run = Callable[..., list[Any]]
Load = Callable[..., TransformersModel]

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = (
    ToolSpec(name="weather", description="Of a city.", parameters=PARAMETERS),
    ToolSpec(name="now", parameters={"type": "object", "properties": {}, "additionalProperties": False}),
)
HISTORY = (
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="Weather?"),
    ChatMessage(
        role="assistant",
        content="",
        tool_calls=(ToolCall(id="c1", name="now", arguments="{}"), ToolCall(id="c2", name="now", arguments="{}")),
    ),
    ChatMessage(role="tool", content="noon", tool_call_id="c1"),
    ChatMessage(role="tool", content="12", tool_call_id="c2"),
)

QWEN_LIKE = (
    "{% if tools %}<s>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}Use <tool_call>.</s>\n{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>"
    "{% endfor %}</s>\n{% endfor %}<s>assistant\n{% if think %}<think>\n{% endif %}"
)


def prepared(model: TransformersModel, chat: ChatInput) -> SequenceState:
    request: Request[ChatInput | CompletionInput] = Request(request_id="r", input=chat, arrived_s=0.0)
    (sequence,) = model.prepare(request, model.split(request)[0])
    return sequence


def codec_of(model: Any) -> TextCodec:
    codec: TextCodec = model._preparer._codec
    return codec


def prompt_of(model: TransformersModel, chat: ChatInput) -> str:
    return codec_of(model).decode(prepared(model, chat).token_ids)


@pytest.fixture(scope="module")
def with_template(
    model_folder: Callable[[str], Path], load_tiny: Load, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TransformersModel]:
    """A tiny model with another chat template."""

    def load(template: str, **options: Any) -> TransformersModel:
        folder = tmp_path_factory.mktemp("template") / "model"
        shutil.copytree(model_folder("llama-long"), folder)
        (folder / "chat_template.jinja").write_text(template)
        return load_tiny(folder, kv_cache_bytes=4 << 20, **options)

    return load


@pytest.fixture(scope="module")
def llama(model_folder: Callable[[str], Path], load_tiny: Load) -> TransformersModel:
    """A tiny model with a long context and a template without tools."""
    return load_tiny(model_folder("llama-long"), kv_cache_bytes=8 << 20)


def test_a_model_without_tools_in_its_template_is_told_in_words(llama: TransformersModel) -> None:
    assert llama.info.details["tool_call_parser"] == "hermes"
    prompt = prompt_of(llama, ChatInput(messages=HISTORY, tools=TOOLS))
    assert prompt.startswith("system\nBe brief.\n\nYou can call functions")
    assert '"name": "weather"' in prompt
    assert '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n<tool_call>' in prompt
    assert "user\n<tool_response>\nnoon\n</tool_response>\n<tool_response>\n12\n</tool_response>" in prompt


def test_a_marker_is_no_special_token_unless_the_tokenizer_says_so(llama: TransformersModel) -> None:
    codec: Any = codec_of(llama)
    tokenizer = codec._tokenizer
    tokenizer.unk_token = "<s>"  # which many tokenizers give for any unknown text
    assert codec.special_token_id("</s>") == 257
    assert codec.special_token_id("<tool_call>") is None
    assert codec.decode_with(["<tool_call>"]) == codec.decode
    assert codec.decode_with(["</s>"])([104, 257, 256]).endswith("</s>")


def test_a_history_with_calls_needs_no_tools(llama: TransformersModel) -> None:
    prompt = prompt_of(llama, ChatInput(messages=HISTORY))
    assert "You can call" not in prompt
    assert "<tool_response>" in prompt


def test_a_template_that_knows_tools_gets_them_as_they_are(with_template: Callable[..., TransformersModel]) -> None:
    prompt = prompt_of(with_template(QWEN_LIKE), ChatInput(messages=HISTORY, tools=TOOLS))
    assert '"description": "Of a city."' in prompt
    assert "<tool_call>now {}</tool_call>" in prompt
    assert "tool\nnoon" in prompt


def test_tools_can_be_switched_off(with_template: Callable[..., TransformersModel], error_of: Any) -> None:
    model = with_template(QWEN_LIKE, tool_call_parser="none")
    error = error_of(model, ChatInput(messages=HISTORY, tools=TOOLS))
    assert isinstance(error, InvalidRequest)
    assert error.param == "tools"


def calls_of(model: TransformersModel, chat: ChatInput, choice: Choice) -> ParsedAnswer:
    parser = ParserChoice.of(model.info.details, chat).parser(opens_in_reasoning=choice.opens_in_reasoning)
    return ParsedAnswer.of([*parser.push(choice.text), *parser.flush()])


@pytest.mark.parametrize("parser", ["hermes", "llama3_json", "mistral", "mistral_args"])
@pytest.mark.parametrize("name", [None, "weather"])
def test_a_call_that_must_come_comes_in_the_models_own_format(
    with_template: Callable[..., TransformersModel], run: Run, parser: str, name: str | None
) -> None:
    model = with_template("{{ messages[0].content }}{{ tools }}", tool_call_parser=parser)
    chat = ChatInput(
        messages=HISTORY[:2],
        params=SamplingParams(max_tokens=200, seed=1),
        num_choices=4,
        tools=TOOLS,
        must_call=True,
        must_call_name=name,
        allow_parallel_calls=False,
    )
    (driven,) = run(model, [chat])
    for choice in driven.generation.choices:
        assert choice.finish_reason == "stop"
        answer = calls_of(model, chat, choice)
        assert answer.text == ""
        (call,) = answer.calls
        assert name in (None, call.name)
        schema = next(tool.parameters for tool in TOOLS if tool.name == call.name)
        assert schema is not None
        jsonschema.validate(json.loads(call.arguments), schema)


def test_several_calls_may_come_and_an_end_is_allowed_after_each(llama: TransformersModel, run: Run) -> None:
    chat = ChatInput(
        messages=HISTORY[:2],
        params=SamplingParams(max_tokens=220, seed=3),
        num_choices=6,
        tools=TOOLS,
        must_call=True,
    )
    (driven,) = run(llama, [chat])
    counts = {len(calls_of(llama, chat, choice).calls) for choice in driven.generation.choices}
    assert min(counts) >= 1
    assert max(counts) >= 2


@pytest.mark.parametrize(
    ("think", "text", "is_complete"),
    [
        (True, "Hm, no.</think>\n\nyes", True),
        (True, "yes", False),
        (False, "<think>Hm.\n</think>\n\nyes", True),
        (False, "yes", True),
    ],
)
def test_a_form_begins_after_reasoning(
    with_template: Callable[..., TransformersModel], think: bool, text: str, is_complete: bool
) -> None:
    model = with_template(QWEN_LIKE + "{# </think> #}")
    assert model.info.details["reasoning_parser"] == "think"
    chat = ChatInput(
        messages=HISTORY[:2],
        params=SamplingParams(grammar=GrammarSpec(kind="choice", text='["yes", "no"]')),
        template_kwargs={"think": think},
    )
    sequence = prepared(model, chat)
    assert sequence.opens_in_reasoning is think
    assert sequence.grammar is not None
    for token_id in codec_of(model).encode(text, add_special_tokens=False):
        sequence.grammar.accept(token_id, 10_000)
    assert sequence.grammar.failure is None
    assert sequence.grammar.is_complete is is_complete


@pytest.mark.parametrize(
    ("must_call", "text", "is_allowed"),
    [
        (False, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', True),
        (False, "yes", True),
        (False, "Well, yes", False),
        (True, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', True),
        (True, "yes", False),
    ],
)
def test_an_answer_with_tools_and_a_form_is_a_call_or_of_the_form(
    llama: TransformersModel, must_call: bool, text: str, is_allowed: bool
) -> None:
    params = SamplingParams(grammar=GrammarSpec(kind="choice", text='["yes", "no"]'))
    sequence = prepared(llama, ChatInput(messages=HISTORY[:2], tools=TOOLS, must_call=must_call, params=params))
    assert sequence.grammar is not None
    for token_id in codec_of(llama).encode(text, add_special_tokens=False):
        sequence.grammar.accept(token_id, 10_000)
    assert (sequence.grammar.failure is None) is is_allowed


def test_a_bad_schema_of_a_tool_that_must_be_called_is_refused(
    llama: TransformersModel, error_of: Callable[..., RequestError]
) -> None:
    hinted = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "maxItems": 1}}}
    loose = ToolSpec(name="f", parameters=hinted)
    strict = ToolSpec(name="f", parameters=hinted, is_strict=True)
    assert prepared(llama, ChatInput(messages=HISTORY, tools=(loose,), must_call=True)).grammar is not None
    error = error_of(llama, ChatInput(messages=HISTORY, tools=(strict,), must_call=True))
    assert isinstance(error, InvalidRequest)
    assert (error.param, "uniqueItems" in error.message) == ("tools", True)
