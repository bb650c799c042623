"""The two endpoints speak OpenAI's wire to the letter, and refuse by name what they can't honour."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Event
from sixfold.core.serving.api import Call
from sixfold.plugins.llm.api import LlmAPI
from sixfold.plugins.llm.generation import ChatInput, CompletionInput
from tests.plugins.llm.wire_fakes import CHAT, LOGPROB, STREAM, FakeCall, chat, complete, delta, finished


async def test_a_chat_answer_is_openais_object() -> None:
    call, answer = await chat(CHAT | {"n": 2}, [[finished("Hello", "Hey")]])
    parsed = ChatCompletion.model_validate(answer, strict=True)
    assert [choice.message.content for choice in parsed.choices] == ["Hello", "Hey"]
    assert [choice.index for choice in parsed.choices] == [0, 1]
    assert parsed.usage is not None
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens, parsed.usage.total_tokens) == (5, 3, 8)
    assert parsed.id.startswith("chatcmpl-")
    assert call.operation == "chat"
    assert call.input.num_choices == 2


async def test_a_chat_stream_opens_with_the_role_and_closes_with_the_reason() -> None:
    _call, chunks = await chat(CHAT | {"stream": True, "n": 2}, STREAM)
    parsed = [ChatCompletionChunk.model_validate(chunk) for chunk in chunks]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in parsed}) == 1
    by_choice = {i: [c.choices[0] for c in parsed if c.choices[0].index == i] for i in (0, 1)}
    for choices in by_choice.values():
        assert choices[0].delta.role == "assistant"
        assert choices[-1].finish_reason is not None
        assert chunks[-1]["choices"][0]["delta"] == {}
        assert all(choice.finish_reason is None for choice in choices[:-1])
    assert "".join(c.delta.content or "" for c in by_choice[0]) == 'Hello\n"🙂!'
    assert by_choice[1][-1].finish_reason == "length"
    assert all("usage" not in chunk for chunk in chunks)


async def test_the_usage_chunk_comes_last_and_all_others_say_null() -> None:
    _call, chunks = await chat(CHAT | {"stream": True, "stream_options": {"include_usage": True}}, STREAM)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 8
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_the_first_token_of_an_echoed_prompt_has_no_probability() -> None:
    body = {"model": "m", "prompt": "é", "echo": True, "logprobs": 2}
    _call, answer = await complete(body, [[finished("éé", logprobs=(LOGPROB, LOGPROB))]])
    # OpenAI's service and vLLM send null, though the client's types do not say so; clients that judge texts rely on it.
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5]
    assert answer["choices"][0]["logprobs"]["top_logprobs"][0] is None
    events = [[delta("éé", logprobs=(LOGPROB, LOGPROB))], [delta("é", logprobs=(LOGPROB,), finish_reason="stop")]]
    _call, chunks = await complete(body | {"stream": True}, [*events, [finished("x")]])
    shown = [chunk["choices"][0]["logprobs"]["token_logprobs"] for chunk in chunks]
    assert shown == [[None, -0.5], [-0.5]]


async def test_logprobs_have_openais_shapes_in_both_endpoints() -> None:
    asked = {"logprobs": True, "top_logprobs": 2}
    call, answer = await chat(CHAT | asked, [[finished("é", logprobs=(LOGPROB,))]])
    assert call.input.params.num_top_logprobs == 2
    entry = answer["choices"][0]["logprobs"]["content"][0]
    assert entry["token"] == "é"
    assert entry["bytes"] == [195, 169]
    assert [top["token"] for top in entry["top_logprobs"]] == ["é", "e"]
    events: list[list[Event]] = [[delta("é", logprobs=(LOGPROB,)), delta("é", logprobs=(LOGPROB,)), finished("é")]]
    _call, chunks = await chat(CHAT | asked | {"stream": True}, events)
    assert chunks[1]["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5
    body = {"model": "m", "prompt": "x", "logprobs": 2}
    _call, answer = await complete(body, [[finished("éé", logprobs=(LOGPROB, LOGPROB))]])
    logprobs = Completion.model_validate(answer).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["é", "é"]
    assert logprobs.text_offset == [0, 1]
    assert logprobs.top_logprobs == [{"é": -0.5, "e": -1.5}] * 2
    _call, chunks = await complete(body | {"stream": True}, events)
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [1]]


async def test_a_completion_stream_ends_each_choice_with_its_reason() -> None:
    _call, chunks = await complete({"model": "m", "prompt": "x", "stream": True}, STREAM)
    parsed = [Completion.model_validate(chunk | {"choices": chunk["choices"]}, strict=False) for chunk in chunks[-1:]]
    assert parsed[0].choices[0].finish_reason == "stop"
    assert "".join(c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == 0) == 'Hello\n"🙂!'
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
async def test_prompts_come_in_four_forms(prompt: object, expected: object) -> None:
    call, _answer = await complete({"model": "m", "prompt": prompt}, [[finished("x")]])
    assert isinstance(call.input, CompletionInput)
    assert call.input.prompts == expected
    assert call.input.params.max_tokens == 16


async def test_parameters_reach_the_runtime() -> None:
    body = CHAT | {
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "logit_bias": {"12": -100},
        "seed": 3,
        "stop": "x",
        "stop_token_ids": [4],
        "ignore_eos": True,
        "min_tokens": 2,
    }
    call, _answer = await chat(body, [[finished("x")]])
    assert isinstance(call.input, ChatInput)
    params = call.input.params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k, params.min_p) == (7, 0.5, 0.9, 0, 0.1)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1, -1, 1.1)
    assert params.logit_bias == ((12, -100.0),)
    assert (params.seed, params.stop, params.stop_token_ids, params.ignore_eos, params.min_tokens) == (
        3,
        ("x",),
        (4,),
        True,
        2,
    )


async def test_text_parts_are_joined_and_a_developer_is_the_system() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": "ok", "refusal": None, "tool_calls": None, "audio": None, "annotations": []},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Eve"},
    ]
    call, _answer = await chat({"model": "m", "messages": messages}, [[finished("x")]])
    assert [(m.role, m.content, m.name) for m in call.input.messages] == [
        ("system", "Be brief.", None),
        ("assistant", "ok", None),
        ("user", "ab", "Eve"),
    ]


HARMLESS: list[dict[str, Any]] = [
    {"user": "u"},
    {"metadata": {"a": "b"}},
    {"store": False},
    {"service_tier": "auto"},
    {"safety_identifier": "s"},
    {"prompt_cache_key": "k"},
    {"parallel_tool_calls": True},
    {"tools": []},
    {"tool_choice": "none"},
    {"response_format": {"type": "text"}},
    {"modalities": ["text"]},
    {"max_tokens": 5, "max_completion_tokens": 5},
    {"n": 1, "stream": None, "stop": None, "seed": None, "temperature": None, "logit_bias": None},
]


@pytest.mark.parametrize("more", HARMLESS, ids=lambda more: next(iter(more)))
async def test_parameters_that_change_nothing_are_accepted(more: dict[str, Any]) -> None:
    await chat(CHAT | more, [[finished("x")]])


REFUSED_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools.1.function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
        "tools.0.function.parameters.type",
    ),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    (
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        "tool_choice",
    ),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "text", "json_schema": {"name": "n"}}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ({"response_format": {"type": "text", "value": {}}}, "response_format.value"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
    ({"guided_json": {}, "guided_choice": ["a"]}, "guided_choice"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"audio": {"voice": "a"}}, "audio"),
    ({"prediction": {"type": "content"}}, "prediction"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"verbosity": "low"}, "verbosity"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"stop": ""}, "stop"),
    ({"temprature": 1}, "temprature"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages.0.tool_call_id"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages.0.tool_calls.0.id"),
    (
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[1]"}}]},
            ]
        },
        "messages.0.tool_calls.0.function.arguments",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "messages.0.content.0.type",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]}, "messages.0.content.0.x"),
]


@pytest.mark.parametrize(("more", "param"), REFUSED_CHAT, ids=lambda value: value if isinstance(value, str) else "")
async def test_what_a_chat_asks_in_vain_is_a_400_that_names_it(more: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await LlmAPI().chat(cast(Call, FakeCall(CHAT | more)))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": 7}, "prompt"),
        ({"messages": []}, "messages"),
    ],
)
async def test_what_a_completion_asks_in_vain_is_a_400_that_names_it(more: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await LlmAPI().complete(cast(Call, FakeCall({"model": "m", "prompt": "x"} | more)))
    assert caught.value.param == param


async def test_a_chunk_costs_at_most_30_microseconds() -> None:
    num_chunks = 5000
    events: list[list[Event]] = [[delta(" word")] for _ in range(num_chunks)]
    best_s = float("inf")
    for _ in range(5):
        call = FakeCall(CHAT | {"stream": True}, events)
        await LlmAPI().chat(cast(Call, call))
        assert call.chunks is not None
        begin_s = time.thread_time()
        async for _frame in call.chunks:
            pass
        best_s = min(best_s, time.thread_time() - begin_s)
    assert best_s / num_chunks < 30e-6
