"""litellm: one function for each modality; the names of models carry the kind of server before the slash."""

import base64
import io
import os
import sys
import time

from cells import ANN, CAPITAL, DOCUMENTS, PERSON, QUERY, SENTENCE, TEXTS, TOOL, WEATHER, answer

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


def form() -> str:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    asked = [{"role": "user", "content": ANN}]
    found = litellm.completion(model="openai/chat", messages=asked, response_format=wanted, max_tokens=60, **SERVER)
    return found.choices[0].message.content


def responses() -> str:
    found = litellm.responses(
        model="openai/chat", input=CAPITAL[0]["content"], temperature=0, max_output_tokens=40, **SERVER
    )
    return "".join(part.text for item in found.output for part in item.content)


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


def film() -> str:
    job = litellm.video_generation(model="openai/film", prompt="a blue ball moving up", **SERVER)
    while job.status in ("queued", "in_progress"):
        time.sleep(0.5)
        job = litellm.video_status(video_id=job.id, **SERVER)
    return base64.b64encode(litellm.video_content(video_id=job.id, **SERVER)).decode()


answer(chat, stream, tools, form, responses, embed, rerank, speak_and_hear, draw, film)
