"""``/v1/responses``: OpenAI's objects and events, what is kept, what is refused by name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from sixfold.core.errors import InvalidRequest, NotFound, StepFailed
from sixfold.core.messages import Event, Failed
from sixfold.core.object_ids import store_of
from sixfold.core.serving.api import Call
from sixfold.plugins.llm.api import LlmAPI
from sixfold.plugins.llm.generation import ChatMessage, GrammarSpec, ToolCall
from tests.plugins.llm.wire_fakes import LOGPROB, FakeCall, delta, finished

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
DETAILS = {"tool_call_parser": "hermes", "reasoning_parser": "think"}
TOOL: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
BODY: dict[str, Any] = {"model": "m", "input": "Hi"}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


class FakeServices:
    def __init__(self, folder: Path) -> None:
        self.data_dir = folder
        self.clock = Clock()
        self.store_id = "abcdefgh"


class RespondingCall(FakeCall):
    """A call with an owner, a path and a query."""

    def __init__(self, *args: Any, tenant: str = "anonymous", response_id: str = "", **more: Any) -> None:
        super().__init__(*args, **more)
        self.tenant = tenant
        self.path_params = {"response_id": response_id}

    def query(self, schema: type[BaseModel]) -> Any:
        return schema()

    async def start(self, model: object, input: Any) -> Any:
        running = await super().start(model, input)

        class Failing:
            async def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
                async for events in running:
                    for event in events:
                        if isinstance(event, Failed):
                            raise event.error
                    yield events

        return Failing()


@pytest.fixture
def services(tmp_path: Path) -> FakeServices:
    return FakeServices(tmp_path)


@pytest.fixture
async def api(services: FakeServices) -> AsyncIterator[LlmAPI]:
    api = LlmAPI()
    await api.startup(cast(Any, services))
    yield api
    await api.shutdown()


async def respond(
    api: LlmAPI,
    body: Mapping[str, Any],
    events: Sequence[Sequence[Event]] = ((finished("Hello"),),),
    details: Mapping[str, Any] = MappingProxyType({}),
    tenant: str = "anonymous",
) -> tuple[RespondingCall, Any]:
    """The call, and the answer's object or its events."""
    call = RespondingCall(dict(body), events, details, tenant=tenant)
    response = await api.respond(cast(Call, call))
    if not body.get("stream"):
        return call, json.loads(bytes(response.body))
    assert call.chunks is not None
    told: list[Any] = []
    async for frame in call.chunks:
        name, data = frame.decode().removesuffix("\n\n").split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        told.append(event)
    return call, told


async def retrieve(api: LlmAPI, response_id: str, tenant: str = "anonymous") -> Any:
    call = RespondingCall({}, tenant=tenant, response_id=response_id)
    return json.loads(bytes((await api.retrieve_response(cast(Call, call))).body))


def pieces(text: str, reason: str = "stop") -> list[list[Event]]:
    parts: list[list[Event]] = [[delta(text[i : i + 3])] for i in range(0, len(text), 3)]
    return [*parts, [delta("", finish_reason=reason), finished(text)]]


async def test_a_response_is_openais_object(api: LlmAPI) -> None:
    _call, answer = await respond(api, BODY | {"instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0})
    response = Response.model_validate(answer, strict=True)
    assert response.id.startswith("resp_")
    assert store_of(response.id) == "abcdefgh"
    assert response.status == "completed"
    assert response.output_text == "Hello"
    assert response.output[0].type == "message"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (5, 3, 8)
    assert (response.instructions, response.metadata, response.temperature) == ("Be brief.", {"a": "b"}, 0)


async def test_text_is_told_in_openais_order_and_numbers(api: LlmAPI) -> None:
    _call, told = await respond(api, BODY | {"stream": True}, pieces("Hello!"))
    for event in told:
        EVENTS.validate_python(event)
    assert [event["type"] for event in told] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert told[0]["response"]["status"] == "in_progress"
    assert told[0]["response"]["output"] == []
    assert told[-1]["response"]["output"][0] == told[-2]["item"]
    assert told[-1]["response"] == await retrieve(api, told[0]["response"]["id"])


async def test_reasoning_text_and_calls_are_items_of_their_own(api: LlmAPI) -> None:
    text = f"<think>\nHm.\n</think>\n\nLook: {CALL}\n{CALL}"
    body = BODY | {"tools": [TOOL]}
    _call, told = await respond(api, body | {"stream": True}, pieces(text), DETAILS)
    for event in told:
        EVENTS.validate_python(event)
    added = [event for event in told if event["type"] == "response.output_item.added"]
    done = [event for event in told if event["type"] == "response.output_item.done"]
    kinds = ["reasoning", "message", "function_call", "function_call"]
    assert [event["item"]["type"] for event in added] == [event["item"]["type"] for event in done] == kinds
    assert [event["output_index"] for event in done] == [0, 1, 2, 3]
    assert [event["item"]["id"] for event in added] == [event["item"]["id"] for event in done]
    arguments = [e["delta"] for e in told if e["type"] == "response.function_call_arguments.delta"]
    assert "".join(arguments) == '{"a": 1}' * 2
    reasoning = [e["delta"] for e in told if e["type"] == "response.reasoning_text.delta"]
    assert "".join(reasoning) == "Hm."
    _call, answer = await respond(api, body, [[finished(text)]], DETAILS)
    shown = [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in answer["output"]]
    streamed = [{k: v for k, v in e["item"].items() if k not in ("id", "call_id")} for e in done]
    assert shown == streamed
    assert shown[2] == {"type": "function_call", "status": "completed", "name": "f", "arguments": '{"a": 1}'}


async def test_a_cut_answer_is_incomplete_and_says_why(api: LlmAPI) -> None:
    _call, told = await respond(api, BODY | {"stream": True}, pieces("Hel", "length"))
    assert told[-1]["type"] == "response.incomplete"
    assert told[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert told[-1]["response"]["output"][0]["status"] == "incomplete"


async def test_an_empty_answer_still_has_a_message(api: LlmAPI) -> None:
    _call, told = await respond(api, BODY | {"stream": True}, [[delta("", finish_reason="stop"), finished("")]])
    assert told[-1]["response"]["output"][0]["content"][0]["text"] == ""
    _call, answer = await respond(api, BODY, [[finished("")]])
    assert answer["output"][0]["content"][0]["text"] == ""


async def test_a_failure_after_the_start_is_an_event(api: LlmAPI) -> None:
    events: list[list[Event]] = [[delta("Hel")], [Failed(request_id="r", error=StepFailed("It broke."))]]
    _call, told = await respond(api, BODY | {"stream": True}, events)
    assert told[-1]["type"] == "response.failed"
    EVENTS.validate_python(told[-1])
    assert told[-1]["response"]["error"] == {"code": "server_error", "message": "It broke."}
    with pytest.raises(NotFound):
        await retrieve(api, told[-1]["response"]["id"])


async def test_log_probabilities_come_with_the_text(api: LlmAPI) -> None:
    body = BODY | {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    call, told = await respond(
        api,
        body | {"stream": True},
        [[delta("é", logprobs=(LOGPROB,)), delta("", finish_reason="stop"), finished("é")]],
    )
    assert call.input.params.num_top_logprobs == 2
    deltas = [event for event in told if event["type"] == "response.output_text.delta"]
    assert deltas[0]["logprobs"][0]["top_logprobs"][1]["token"] == "e"
    assert told[-1]["response"]["output"][0]["content"][0]["logprobs"][0]["logprob"] == -0.5


async def test_a_conversation_goes_on_without_the_earlier_instructions(api: LlmAPI) -> None:
    _call, first = await respond(api, BODY | {"instructions": "Be brief."})
    _call, second = await respond(api, BODY | {"input": "And?", "previous_response_id": first["id"]})
    call, third = await respond(
        api, BODY | {"input": "So?", "previous_response_id": second["id"], "instructions": "Be long."}
    )
    assert third["previous_response_id"] == second["id"]
    assert [(m.role, m.content) for m in call.input.messages] == [
        ("system", "Be long."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "And?"),
        ("assistant", "Hello"),
        ("user", "So?"),
    ]


async def test_calls_and_their_outputs_go_on_too(api: LlmAPI) -> None:
    text = f"<think>Hm.</think>{CALL}"
    _call, first = await respond(api, BODY | {"tools": [TOOL]}, [[finished(text)]], DETAILS)
    call_id = first["output"][1]["call_id"]
    output = {"type": "function_call_output", "call_id": call_id, "output": "7"}
    call, _second = await respond(api, BODY | {"input": [output], "previous_response_id": first["id"]})
    assert list(call.input.messages) == [
        ChatMessage(role="user", content="Hi"),
        ChatMessage(
            role="assistant",
            content="",
            reasoning="Hm.",
            tool_calls=(ToolCall(id=call_id, name="f", arguments='{"a": 1}'),),
        ),
        ChatMessage(role="tool", content="7", tool_call_id=call_id),
    ]


async def test_items_become_turns(api: LlmAPI) -> None:
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "x"}]},
    ]
    call, _answer = await respond(api, BODY | {"input": items, "instructions": "Be brief."})
    messages = call.input.messages
    assert [(m.role, m.content) for m in messages] == [
        ("system", "Be brief.\n\nBe kind."),
        ("user", "a"),
        ("assistant", "b"),
        ("tool", "x"),
    ]
    assert [made.id for made in messages[2].tool_calls] == ["1", "2"]


async def test_forms_tools_and_limits_reach_the_runtime(api: LlmAPI) -> None:
    body = BODY | {
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "max_output_tokens": 7,
        "top_p": 0.5,
        "seed": 3,
    }
    call, answer = await respond(api, body)
    params = call.input.params
    assert params.grammar == GrammarSpec(kind="json_schema", text='{"type":"object"}', param="text.format.schema")
    assert (params.max_tokens, params.top_p, params.seed) == (7, 0.5, 3)
    assert answer["text"]["format"]["schema"] == {"type": "object"}
    named = {"type": "function", "name": "f"}
    call, answer = await respond(api, BODY | {"tools": [TOOL], "tool_choice": named, "parallel_tool_calls": False})
    assert (call.input.must_call, call.input.must_call_name) == (True, "f")
    assert not call.input.allow_parallel_calls
    Response.model_validate(answer, strict=True)
    call, _answer = await respond(api, BODY | {"tools": [TOOL], "tool_choice": "none"})
    assert call.input.tools == ()


async def test_a_response_is_its_owners_alone(api: LlmAPI) -> None:
    _call, answer = await respond(api, BODY, tenant="ada")
    assert (await retrieve(api, answer["id"], "ada"))["id"] == answer["id"]
    with pytest.raises(NotFound):
        await retrieve(api, answer["id"], "eve")
    with pytest.raises(InvalidRequest) as caught:
        await respond(api, BODY | {"previous_response_id": answer["id"]}, tenant="eve")
    assert caught.value.param == "previous_response_id"
    with pytest.raises(NotFound):
        await api.delete_response(cast(Call, RespondingCall({}, tenant="eve", response_id=answer["id"])))


async def test_what_is_deleted_or_was_not_to_be_stored_cant_be_read(api: LlmAPI) -> None:
    _call, answer = await respond(api, BODY)
    response = await api.delete_response(cast(Call, RespondingCall({}, response_id=answer["id"])))
    assert json.loads(bytes(response.body)) == {"id": answer["id"], "object": "response", "deleted": True}
    _call, unstored = await respond(api, BODY | {"store": False})
    for response_id in (answer["id"], unstored["id"], "resp_none"):
        with pytest.raises(NotFound):
            await retrieve(api, response_id)


async def test_a_response_outlives_the_server_and_expires_after_30_days(services: FakeServices) -> None:
    first = LlmAPI()
    await first.startup(cast(Any, services))
    _call, answer = await respond(first, BODY)
    await first.shutdown()
    second = LlmAPI()
    await second.startup(cast(Any, services))
    assert (await retrieve(second, answer["id"]))["id"] == answer["id"]
    services.clock.now_s += 31 * 24 * 3600
    with pytest.raises(NotFound):
        await retrieve(second, answer["id"])
    await second.shutdown()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"background": True}, "background"),
    ({"conversation": "c"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"max_tool_calls": 3}, "max_tool_calls"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema"),
    ({"truncation": "auto"}, "truncation"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"include": ["file_search_call.results"]}, "include.0"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [TOOL, TOOL]}, "tools.1.name"),
    ({"tools": [TOOL | {"parameters": {"type": "string"}}]}, "tools.0.parameters.type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
    ({"input": [{"role": "user"}]}, "input.0.content"),
    ({"input": [{"content": "x"}]}, "input.0.role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.image_url"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input.0.call_id"),
    ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "no"}]}, "input.0.arguments"),
    ({"input": [{"type": "function_call_output", "call_id": "1"}]}, "input.0.output"),
    ({"previous_response_id": "resp_x"}, "previous_response_id"),
    ({"max_tokens": 3}, "max_tokens"),
    ({"temprature": 1}, "temprature"),
]


@pytest.mark.parametrize(("more", "param"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
async def test_what_is_asked_in_vain_is_a_400_that_names_it(api: LlmAPI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await respond(api, BODY | more)
    assert caught.value.param == param


async def test_what_changes_nothing_is_accepted(api: LlmAPI) -> None:
    await respond(
        api,
        BODY
        | {
            "user": "u",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
            "service_tier": "auto",
            "truncation": "disabled",
            "background": False,
            "reasoning": {"effort": None},
            "include": ["reasoning.encrypted_content"],
            "tool_choice": "auto",
            "text": {"format": {"type": "text"}},
        },
    )
