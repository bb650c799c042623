"""A model that may call but need not (``tool_choice: auto``): its text is free, and what it calls is held to the schema."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm import sampler, step_launcher
from sixfold.plugins.llm.answer_parser import ParsedAnswer, ParserChoice
from sixfold.plugins.llm.call_watch import CallWatch
from sixfold.plugins.llm.generation import ChatInput, ChatMessage, SamplingParams, ToolCall, ToolSpec
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.sampler import PendingSample
from sixfold.plugins.llm.text_codec import TextCodec
from sixfold.plugins.llm.tool_formats import HERMES, LLAMA3, ToolFormat
from tests.plugins.llm.conftest import byte_tokenizer, numbered

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = (
    ToolSpec(name="weather", parameters=WEATHER, is_strict=True),
    ToolSpec(name="now", parameters=NOTHING, is_strict=True),
)
OVERSHOT, FITTING = 258, 259
"""Tokens that hold the end of the marker and what follows: one that no call goes on with, one that calls do."""

Load = Callable[..., TransformersModel]


def asking(**more: Any) -> ChatInput:
    fields: dict[str, Any] = {
        "messages": (ChatMessage(role="user", content="Hi"),),
        "params": SamplingParams(max_tokens=200, seed=4),
        "tools": TOOLS,
    }
    return ChatInput(**(fields | more))


@pytest.fixture(scope="module")
def folder(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary has the two tokens more."""
    target = tmp_path_factory.mktemp("lazy") / "model"
    shutil.copytree(model_folder("llama-long"), target)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["l>x", 'l>\n{"n'])
    assert tokenizer.convert_tokens_to_ids(["l>x", 'l>\n{"n']) == [OVERSHOT, FITTING]
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture
def load(folder: Path, load_tiny: Load) -> Load:
    def loaded(template: str = "{{ messages[0].content }}", **options: Any) -> TransformersModel:
        (folder / "chat_template.jinja").write_text(template)
        return load_tiny(folder, kv_cache_bytes=4 << 20, **options)

    return loaded


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[int]], list[int]]:
    """Lets a model say these tokens, where it is free to; returns the masked rows' number of allowed tokens."""
    real = sampler.begin_sample

    def follow(tokens: Sequence[int]) -> list[int]:
        allowed: list[int] = []

        def begin_sample(logits: Any, rows: Sequence[Any], masks: Mapping[int, Any], unknown: Any) -> PendingSample:
            allowed.extend(int(mask.sum()) for mask in masks.values())
            chosen = real(logits, rows, masks, unknown).tokens
            for place, row in enumerate(rows):
                number: int = row.num_before
                if place not in masks and number < len(tokens):
                    chosen[place] = tokens[number]
            return PendingSample(chosen, None)

        monkeypatch.setattr(step_launcher, "begin_sample", begin_sample)
        return allowed

    return follow


def tokens_of(folder: Path, text: str) -> list[int]:
    return byte_ids(TextCodec.load(folder), text)


def byte_ids(codec: TextCodec, text: str) -> list[int]:
    return [codec.encode(char, add_special_tokens=False)[0] for char in text]


def parsed(model: TransformersModel, chat: ChatInput, driven: Any) -> ParsedAnswer:
    (choice,) = driven.generation.choices
    parser = ParserChoice.of(model.info.details, chat).parser(opens_in_reasoning=choice.opens_in_reasoning)
    return ParsedAnswer.of([*parser.push(choice.text), *parser.flush()])


def check_calls(calls: Sequence[ToolCall]) -> None:
    assert calls
    for call in calls:
        schema = next(tool.parameters for tool in TOOLS if tool.name == call.name)
        assert schema is not None
        jsonschema.validate(json.loads(call.arguments), schema)


@pytest.mark.parametrize(
    ("parser", "said", "text"),
    [
        ("hermes", "Sure, <b>.\n<tool_call>", "Sure, <b>.\n"),
        ("mistral", "Sure.[TOOL_CALLS]", "Sure."),
        ("mistral_args", "Sure.[TOOL_CALLS]", "Sure."),
        ("llama3_json", "\n{", ""),
        ("llama3_json", "<|python_tag|>", ""),
    ],
)
@pytest.mark.parametrize("is_parallel", [True, False])
def test_free_text_stays_and_a_call_that_begins_is_held_to_its_schema(
    load: Load, folder: Path, run: Any, script: Any, parser: str, said: str, text: str, is_parallel: bool
) -> None:
    model = load(tool_call_parser=parser)
    chat = asking(allow_parallel_calls=is_parallel)
    allowed = script(tokens_of(folder, said))
    (driven,) = run(model, [chat])
    answer = parsed(model, chat, driven)
    assert answer.text == text
    is_cut = driven.generation.choices[0].finish_reason == "length"  # the random model calls again and again
    check_calls(answer.calls[: len(answer.calls) - is_cut])
    assert is_parallel or (len(answer.calls), is_cut) == (1, False)
    assert allowed
    assert max(allowed) < 260


@pytest.mark.parametrize("said", ["I will not call.", "<tool_cal", '{"a": 1} is an object'])
def test_text_that_only_looks_like_a_call_is_never_masked(
    load: Load, folder: Path, run: Any, script: Any, said: str
) -> None:
    allowed = script([*tokens_of(folder, said), 257])
    model = load()
    chat = asking()
    (driven,) = run(model, [chat])
    assert parsed(model, chat, driven).text == said
    assert driven.generation.choices[0].finish_reason == "stop"
    assert not allowed


def test_a_token_that_holds_the_end_of_the_marker_and_the_begin_of_a_call_is_taken(
    load: Load, folder: Path, run: Any, script: Any
) -> None:
    model = load()
    chat = asking(allow_parallel_calls=False)
    script([*tokens_of(folder, "Well <tool_cal"), FITTING])
    (driven,) = run(model, [chat])
    assert driven.texts[0].startswith('Well <tool_call>\n{"name": "')
    check_calls(parsed(model, chat, driven).calls)


@pytest.mark.parametrize("wants_call", [True, False])
@pytest.mark.parametrize("method", ["off", "ngram"])
def test_a_token_with_which_a_call_would_begin_as_none_may_is_chosen_again(
    load: Load, folder: Path, run: Any, script: Any, wants_call: bool, method: str
) -> None:
    model = load(speculation={"method": method})
    likes_l = ((tokens_of(folder, "l")[0], 100.0),)
    params = SamplingParams(max_tokens=150, seed=4, logit_bias=likes_l if wants_call else ((257, 100.0),))
    chat = asking(params=params, allow_parallel_calls=False)
    allowed = script([*tokens_of(folder, "Well <tool_cal"), OVERSHOT, *tokens_of(folder, ">")])
    (driven,) = run(model, [chat])
    assert "x" not in driven.texts[0][:18]
    if wants_call:
        assert driven.texts[0].startswith('Well <tool_call>\n{"name": "')
        check_calls(parsed(model, chat, driven).calls)
    else:
        assert len(allowed) == 1  # free again after the one token
        assert driven.texts[0].startswith("Well <tool_cal")
        assert driven.generation.choices[0].finish_reason == "stop"


def test_guessed_tokens_change_no_call(load: Load, folder: Path, run: Any, script: Any) -> None:
    said = "abc abc abc abc abc abc <tool_call>"
    chat = asking(messages=(ChatMessage(role="user", content=said * 3),))
    script(tokens_of(folder, said))
    with_drafts = load(speculation={"method": "ngram", "max_sequences": 4})
    texts = [run(with_drafts, [chat], seed)[0].texts for seed in (None, 1, 2)]
    assert with_drafts.stats()["spec_decode_num_accepted_tokens_total"] > 0
    without = load(speculation={"method": "off"})
    assert all(one == run(without, [chat])[0].texts for one in texts)


def test_a_strict_schema_that_cant_be_enforced_is_a_400_and_a_loose_one_is_a_hint(load: Load) -> None:
    hinted = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "maxItems": 1}}}
    model = load()

    def prepare(is_strict: bool) -> Any:
        request = numbered(0, asking(tools=(ToolSpec(name="f", parameters=hinted, is_strict=is_strict),)))
        return model.prepare(request, model.split(request)[0])[0]

    assert prepare(False).grammar is not None
    with pytest.raises(InvalidRequest, match="uniqueItems") as caught:
        prepare(True)
    assert caught.value.param == "tools"


def watched(format: ToolFormat, text: str, **more: Any) -> int | None:
    """Where in the text a call begins, by its bytes; None if it does not."""
    options: dict[str, Any] = {"thinks": False, "opens_in_reasoning": False} | more
    watch = CallWatch(format, lambda token: bytes([token]), **options)
    raw = text.encode()
    for place, byte in enumerate(raw):
        begun = watch.push(byte)
        if begun is not None:
            return place + 1 - len(begun)
    return None


@pytest.mark.parametrize(
    ("format", "text", "more", "begins"),
    [
        (HERMES, "ab<tool_call>", {}, 2),
        (HERMES, "<tool<tool_call>", {}, 5),
        (HERMES, "<think>a <tool_call></think>\n<tool_call>", {"thinks": True}, 29),
        (HERMES, "<think>a <tool_call>", {"thinks": True}, None),
        (HERMES, "a <tool_call></think><tool_call>", {"thinks": True, "opens_in_reasoning": True}, 21),
        (HERMES, "no <tool_call>", {"thinks": True}, 3),
        (LLAMA3, " {", {}, 1),
        (LLAMA3, "a {", {}, None),
        (LLAMA3, "<|python_tag|>", {}, 0),
        (LLAMA3, "<|python_x {", {}, None),
        (LLAMA3, "<think>{</think>\n{", {"thinks": True}, 17),
    ],
)
def test_a_call_begins_where_the_format_says_but_not_in_reasoning(
    format: ToolFormat, text: str, more: dict[str, Any], begins: int | None
) -> None:
    assert watched(format, text, **more) == begins
