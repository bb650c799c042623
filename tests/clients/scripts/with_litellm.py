"""litellm: one function for each modality; the names of models carry the kind of server before the slash."""

import base64
import io
import os
import sys

from cells import CAPITAL, DOCUMENTS, QUERY, SENTENCE, TEXTS, TOOL, WEATHER, answer

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it looks for prices on the internet first
import httpx
import litellm

URL = sys.argv[1]
SERVER = {"api_base": f"{URL}/v1", "api_key": "none", "timeout": 300, "max_retries": 0}


def chat() -> str:
    found = litellm.completion(model="openai/chat", messages=CAPITAL, temperature=0, max_tokens=40, **SERVER)
    return found.choices[0].message.content


def stream() -> str:
    found = litellm.completion(
        model="openai/chat", messages=CAPITAL, temperature=0, max_tokens=40, stream=True, **SERVER
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in found)


def tools() -> list:
    found = litellm.completion(
        model="openai/chat", messages=WEATHER, tools=[TOOL], tool_choice="required", max_tokens=60, seed=1, **SERVER
    )
    return [[call.function.name, call.function.arguments] for call in found.choices[0].message.tool_calls]


def embed() -> list:
    found = litellm.embedding(model="openai/embed", input=TEXTS, **SERVER)
    return [one["embedding"] for one in found.data]


def rerank() -> list:
    found = litellm.rerank(
        model="cohere/embed", query=QUERY, documents=DOCUMENTS, top_n=2, api_base=URL, api_key="none"
    )
    return [one["index"] for one in found.results]


def speak_and_hear() -> str:
    sound = litellm.speech(model="openai/speak", voice="alloy", input=SENTENCE, **SERVER).content
    file = io.BytesIO(sound)
    file.name = "speech.mp3"
    return litellm.transcription(model="openai/hear", file=file, language="en", **SERVER).text


def draw() -> str:
    found = litellm.image_generation(model="openai/draw", prompt="a red circle", size="64x64", **SERVER).data[0]
    # It takes no response_format for names that it does not know.
    return found.b64_json or base64.b64encode(httpx.get(found.url).content).decode()


answer(chat, stream, tools, embed, rerank, speak_and_hear, draw)
