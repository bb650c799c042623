"""huggingface-hub's InferenceClient, pointed at a server of ours."""

import sys

from cells import ANN, CAPITAL, PERSON, TOOL, WEATHER, answer
from huggingface_hub import InferenceClient

CLIENT = InferenceClient(base_url=f"{sys.argv[1]}/v1", api_key="none", timeout=300)


def chat() -> str:
    found = CLIENT.chat_completion(CAPITAL, model="chat", temperature=0, max_tokens=40)
    return found.choices[0].message.content


def stream() -> str:
    found = CLIENT.chat_completion(CAPITAL, model="chat", temperature=0, max_tokens=40, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in found if chunk.choices)


def tools() -> list:
    found = CLIENT.chat_completion(WEATHER, model="chat", tools=[TOOL], tool_choice="required", max_tokens=60, seed=1)
    return [[call.function.name, call.function.arguments] for call in found.choices[0].message.tool_calls]


def form() -> str:
    found = CLIENT.chat_completion(
        [{"role": "user", "content": ANN}],
        model="chat",
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
    )
    return found.choices[0].message.content


answer(chat, stream, tools, form)
