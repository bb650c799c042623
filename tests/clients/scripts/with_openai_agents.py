"""openai-agents: an agent that must call a tool, one that answers in a type, over both of OpenAI's interfaces."""

import asyncio
import json
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from cells import ANN, CAPITAL, answer
from openai import AsyncOpenAI
from person import Person

set_tracing_disabled(True)
CALLED = []
QUESTION = CAPITAL[0]["content"]


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    CALLED.append(city)
    return "mild"


def agent(interface: type, **options: object) -> Agent:
    """An agent with a client of its own, for one event loop."""
    client = AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0, timeout=300)
    model = interface(model="chat", openai_client=client)
    settings = ModelSettings(temperature=0, max_tokens=60, **options.pop("settings", {}))
    return Agent(name="Helper", instructions="Answer.", model=model, model_settings=settings, **options)


def run(interface: type, question: str, **options: object) -> object:
    return asyncio.run(Runner.run(agent(interface, **options), question, max_turns=2)).final_output


def chat(interface: type = OpenAIChatCompletionsModel) -> str:
    return run(interface, QUESTION)


async def stream() -> str:
    """The pieces as they come, of an agent over chats."""
    running = Runner.run_streamed(agent(OpenAIChatCompletionsModel), QUESTION)
    events = [event.data async for event in running.stream_events() if event.type == "raw_response_event"]
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def tools(interface: type = OpenAIChatCompletionsModel) -> list:
    CALLED.clear()
    got = run(
        interface,
        "What is the weather in Paris?",
        tools=[get_weather],
        settings={"tool_choice": "required", "parallel_tool_calls": False},
        tool_use_behavior="stop_on_first_tool",
    )
    if got != "mild":
        raise ValueError(f"The run ended with {got!r}, not with what the tool gave.")
    return [["get_weather", json.dumps({"city": city})] for city in CALLED]


def form(interface: type = OpenAIChatCompletionsModel) -> dict:
    return run(interface, ANN, output_type=Person).model_dump()


def responses() -> dict:
    return {cell.__name__: cell(OpenAIResponsesModel) for cell in (chat, tools, form)}


answer(chat, stream, tools, form, responses)
