"""The clients that people use get tool calls, structured answers and responses from a real model over HTTP.

135 million weights choose badly, so what is tested is the form: what must be a call is one, what has a schema validates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import httpx2
import jsonschema
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel, ConfigDict, Field

pytestmark = pytest.mark.models

CITY = {"type": "string", "maxLength": 12}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": CITY, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": PARAMETERS},
}
TIME: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}
QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]


class Person(BaseModel):
    """A person."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=130)
    role: Literal["doctor", "nurse"]
    tags: list[Literal["a", "b"]] = Field(max_length=2)


@pytest.fixture
def client(demo_server: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0, timeout=120.0) as client:
        yield client


def test_a_required_call_comes_whole_and_streamed(client: Any) -> None:
    asked: dict[str, Any] = {
        "model": "chat",
        "messages": QUESTION,
        "tools": [WEATHER, TIME],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 100,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    (call,) = whole.message.tool_calls
    assert call.function.name in ("get_weather", "get_time")
    with client.chat.completions.stream(**asked) as stream:
        for _event in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    (same,) = streamed.message.tool_calls
    assert (same.function.name, same.function.arguments) == (call.function.name, call.function.arguments)


def test_a_named_call_can_be_answered_and_the_model_goes_on(client: Any) -> None:
    answer = client.chat.completions.create(
        model="chat",
        messages=QUESTION,
        tools=[WEATHER, TIME],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=100,
    )
    (call,) = answer.choices[0].message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
    result = {"role": "tool", "tool_call_id": call.id, "content": "It rains, 12 degrees."}
    final = client.chat.completions.create(
        model="chat",
        messages=[*QUESTION, answer.choices[0].message, result],
        tools=[WEATHER],
        tool_choice="none",
        temperature=0,
        max_tokens=40,
    )
    assert final.choices[0].message.content


def test_openai_parses_an_answer_into_a_class(client: Any) -> None:
    messages = [{"role": "user", "content": "Describe a nurse."}]
    whole = client.chat.completions.parse(model="chat", messages=messages, response_format=Person, temperature=0)
    assert isinstance(whole.choices[0].message.parsed, Person)
    with client.chat.completions.stream(
        model="chat", messages=messages, response_format=Person, temperature=0
    ) as stream:
        for _event in stream:
            pass
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == whole.choices[0].message.parsed


def test_vllms_forms_are_kept(client: Any) -> None:
    def ask(**outputs: Any) -> str:
        answer = client.chat.completions.create(
            model="chat", messages=QUESTION, max_tokens=60, temperature=0, extra_body={"structured_outputs": outputs}
        )
        return str(answer.choices[0].message.content)

    assert ask(choice=["sunny", "rainy"]) in ("sunny", "rainy")
    assert ask(regex=r"\d{2} degrees").endswith(" degrees")
    assert set(json.loads(ask(json=PARAMETERS))) == {"city", "unit"}


def test_what_cant_be_enforced_is_refused_by_name(client: Any) -> None:
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="chat", messages=QUESTION, response_format=bad)
    assert caught.value.param == "response_format.json_schema.schema"
    assert "uniqueItems" in caught.value.message


def test_a_response_goes_on_from_the_one_before(client: Any) -> None:
    first = client.responses.create(
        model="chat", input="My name is Ada.", instructions="Be brief.", temperature=0, max_output_tokens=30
    )
    assert first.output_text
    assert first.usage.input_tokens > 0
    asked: dict[str, Any] = {"model": "chat", "temperature": 0, "max_output_tokens": 30}
    second = client.responses.create(input="What is my name?", previous_response_id=first.id, **asked)
    assert second.previous_response_id == first.id
    told: list[Any] = [{"role": "user", "content": "My name is Ada."}, *first.output]
    whole = client.responses.create(input=[*told, {"role": "user", "content": "What is my name?"}], **asked)
    assert second.output_text == whole.output_text
    assert second.usage.input_tokens == whole.usage.input_tokens
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(second.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(second.id)
    unstored = client.responses.create(model="chat", input="Hi", store=False, max_output_tokens=1)
    assert unstored.status == "incomplete"
    assert unstored.incomplete_details.reason == "max_output_tokens"
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model="chat", input="Hi", previous_response_id=unstored.id)
    assert caught.value.code == "previous_response_not_found"


def test_a_streamed_response_says_the_same_as_a_whole_one(client: Any) -> None:
    asked: dict[str, Any] = {"model": "chat", "input": "Name a colour.", "temperature": 0, "max_output_tokens": 20}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    last = events[-1].response
    assert last.output_text == text
    assert client.responses.retrieve(last.id).output_text == text


def test_responses_call_functions_and_parse_forms(client: Any) -> None:
    tool = {"type": "function", "strict": True} | WEATHER["function"]
    answer = client.responses.create(
        model="chat",
        input="What is the weather in Paris?",
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_output_tokens=100,
    )
    (call,) = answer.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    jsonschema.validate(json.loads(call.arguments), PARAMETERS)
    after = client.responses.create(
        model="chat",
        previous_response_id=answer.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}],
        temperature=0,
        max_output_tokens=20,
    )
    assert after.output_text
    parsed = client.responses.parse(model="chat", input="Describe a doctor.", text_format=Person, temperature=0)
    assert isinstance(parsed.output_parsed, Person)


def test_langchain_binds_tools_and_structured_output(demo_server: Any) -> None:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def add(first: int, second: int) -> int:
        """Adds two numbers."""
        return first + second

    with httpx2.Client(timeout=120.0) as http:
        for use_responses_api in (False, True):
            settings: dict[str, Any] = {
                "model": "chat",
                "base_url": f"{demo_server.url}/v1",
                "api_key": "none",
                "temperature": 0,
                "max_tokens": 120,
                "max_retries": 0,
                "use_responses_api": use_responses_api,
                "http_client": http,
            }
            model: Any = ChatOpenAI(**settings)
            answer = model.bind_tools([add], tool_choice="add", parallel_tool_calls=False).invoke("What is 2 plus 3?")
            (call,) = answer.tool_calls
            assert call["name"] == "add"
            structured = model.with_structured_output(Person, method="json_schema", strict=True)
            assert isinstance(structured.invoke("Describe a nurse."), Person)
            assert list(model.bind(max_tokens=8).stream("Say hello."))


async def test_pydantic_ai_gets_its_output_type(demo_server: Any) -> None:
    from pydantic_ai import Agent, ToolOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0, timeout=120.0) as client:
        provider = OpenAIProvider(openai_client=client)
        for kind in (OpenAIChatModel, OpenAIResponsesModel):
            agent: Any = Agent(
                kind("chat", provider=provider),
                output_type=ToolOutput(Person, strict=True),
                model_settings={"temperature": 0, "max_tokens": 120, "parallel_tool_calls": False},
            )
            assert isinstance((await agent.run("Describe a nurse.")).output, Person)


def test_the_endpoints_are_in_the_document(demo_server: Any) -> None:
    paths = httpx.get(f"{demo_server.url}/openapi.json").json()["paths"]
    assert {"post"} <= set(paths["/v1/responses"])
    assert {"get", "delete"} <= set(paths["/v1/responses/{response_id}"])
