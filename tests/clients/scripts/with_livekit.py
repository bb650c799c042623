"""LiveKit Agents with its plugin for OpenAI: the parts of a voice agent, without a room."""

import sys

from cells import ANN, CAPITAL, SENTENCE, TOOL, WEATHER, answer
from livekit import rtc
from livekit.agents import APIConnectOptions, llm, utils
from livekit.agents.stt import SpeechEventType
from livekit.plugins import openai
from person import Person

SERVER = {"base_url": f"{sys.argv[1]}/v1", "api_key": "none"}
PATIENT = APIConnectOptions(max_retry=0, timeout=300)


@llm.function_tool(raw_schema=TOOL["function"])
async def get_weather(raw_arguments: dict) -> str:
    return "mild"


async def ask(question: str, **options: object) -> llm.CollectedResponse:
    context = llm.ChatContext.empty()
    context.add_message(role="user", content=question)
    async with openai.LLM(model="chat", temperature=0, max_completion_tokens=60, **SERVER) as model:
        return await model.chat(chat_ctx=context, conn_options=PATIENT, **options).collect()


async def speak() -> rtc.AudioFrame:
    async with openai.TTS(model="speak", voice="alloy", **SERVER) as mouth:
        return await mouth.synthesize(SENTENCE, conn_options=PATIENT).collect()


async def stream() -> str:
    return (await ask(CAPITAL[0]["content"])).text


async def tools() -> list:
    found = await ask(WEATHER[0]["content"], tools=[get_weather], tool_choice="required")
    return [[call.name, call.arguments] for call in found.tool_calls]


async def form() -> str:
    return (await ask(ANN, response_format=Person)).text


async def speak_and_hear() -> str:
    async with openai.STT(model="hear", language="en", **SERVER) as ear:
        return (await ear.recognize(await speak(), conn_options=PATIENT)).alternatives[0].text


async def hear_live() -> str:
    sound = await speak()
    silence = rtc.AudioFrame.create(sound.sample_rate, 1, sound.sample_rate)
    async with (
        utils.http_context.open(),
        openai.STT(model="hear", language="en", use_realtime=True, **SERVER) as ear,
        ear.stream(conn_options=PATIENT) as heard,
    ):
        heard.push_frame(sound)
        heard.push_frame(silence)  # the server ends the turn
        async for event in heard:
            if event.type == SpeechEventType.FINAL_TRANSCRIPT:
                return event.alternatives[0].text
    raise EOFError("The session ended without a transcript.")


answer(stream, tools, form, speak_and_hear, hear_live)
