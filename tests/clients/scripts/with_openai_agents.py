"""openai-agents: an agent that must call a tool, one that answers in a type, over both of OpenAI's interfaces."""

import asyncio
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
from cells import answer
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

set_tracing_disabled(True)
CALLED = []


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=130)


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    CALLED.append(city)
    return "mild"


def run(interface: type, question: str, **agent: object) -> object:
    """One run of an agent, in an event loop and with a client of its own."""
    client = AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0, timeout=300)
    model = interface(model="chat", openai_client=client)
    settings = ModelSettings(temperature=0, max_tokens=60, **agent.pop("settings", {}))
    made = Agent(name="Helper", instructions="Answer.", model=model, model_settings=settings, **agent)
    return asyncio.run(Runner.run(made, question, max_turns=2)).final_output


def cells_of(interface: type) -> dict:
    """The cells of one interface."""

    def chat() -> str:
        return run(interface, "What is the capital of France?")

    def tools() -> list:
        CALLED.clear()
        got = run(
            interface,
            "What is the weather in Paris?",
            tools=[get_weather],
            settings={"tool_choice": "required", "parallel_tool_calls": False},
            tool_use_behavior="stop_on_first_tool",
        )
        return [got, *CALLED]

    def form() -> dict:
        return run(interface, "Ann is 30 years old.", output_type=Person).model_dump()

    return {"chat": chat, "tools": tools, "form": form}


chats, responses = cells_of(OpenAIChatCompletionsModel), cells_of(OpenAIResponsesModel)
answer(chats | {f"responses_{name}": cell for name, cell in responses.items()})
