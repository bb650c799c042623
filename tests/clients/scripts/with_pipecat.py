"""Pipecat: each of its services for OpenAI in a pipeline of its own, as a voice agent's frames go through it."""

import json
import sys

from cells import ANN, CAPITAL, PERSON, SENTENCE, TOOL, WEATHER, answer
from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    FunctionCallResultFrame,
    InputAudioRawFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMTextFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.stt import OpenAIRealtimeSTTService, OpenAISTTService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.workers.runner import WorkerRunner

URL = f"{sys.argv[1]}/v1"
SERVER = {"base_url": URL, "api_key": "none"}
RATE_HZ = 24_000


class Sink(FrameProcessor):
    """Keeps what reaches the pipeline's end."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        await self.push_frame(frame, direction)


async def run(service: FrameProcessor, *frames: Frame, until: type) -> list:
    """What comes out of a service up to a frame of a type.

    Raises:
        RuntimeError: An error came instead.
    """
    sink, errors = Sink(), []
    worker = PipelineWorker(
        Pipeline([service, sink]),
        enable_rtvi=False,
        params=PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ),
    )
    worker.set_reached_downstream_filter((until,))

    @worker.event_handler("on_pipeline_started")
    async def begin(worker: PipelineWorker, frame: Frame) -> None:
        await worker.queue_frames(frames)

    @worker.event_handler("on_frame_reached_downstream")
    async def end(worker: PipelineWorker, frame: Frame) -> None:
        await worker.queue_frame(EndFrame())

    @worker.event_handler("on_pipeline_error")
    async def fail(worker: PipelineWorker, frame: ErrorFrame) -> None:
        errors.append(frame.error)
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
    if errors:
        raise RuntimeError(errors[0])
    return sink.frames


def model() -> OpenAILLMService:
    return OpenAILLMService(
        **SERVER, settings=OpenAILLMService.Settings(model="chat", temperature=0, max_completion_tokens=60)
    )


async def speak() -> bytes:
    mouth = OpenAITTSService(**SERVER, settings=OpenAITTSService.Settings(model="speak", voice="alloy"))
    frames = await run(mouth, TTSSpeakFrame(SENTENCE), until=TTSStoppedFrame)
    return b"".join(frame.audio for frame in frames if isinstance(frame, TTSAudioRawFrame))


async def hear(ear: FrameProcessor) -> str:
    """What it makes of the sentence, in pieces of 20 ms as a microphone gives them, and a second of silence."""
    sound, size = await speak() + bytes(2 * RATE_HZ), 2 * RATE_HZ // 50
    pieces = [
        InputAudioRawFrame(sound[start : start + size], RATE_HZ, 1) for start in range(0, len(sound) - size + 1, size)
    ]
    frames = await run(
        ear, VADUserStartedSpeakingFrame(), *pieces, VADUserStoppedSpeakingFrame(), until=TranscriptionFrame
    )
    return "".join(frame.text for frame in frames if isinstance(frame, TranscriptionFrame))


async def chat() -> str:
    return await model().run_inference(LLMContext(CAPITAL))


async def stream() -> str:
    frames = await run(model(), LLMContextFrame(LLMContext(CAPITAL)), until=LLMFullResponseEndFrame)
    return "".join(frame.text for frame in frames if isinstance(frame, LLMTextFrame))


async def tools() -> list:
    async def get_weather(call: FunctionCallParams) -> None:
        await call.result_callback("mild")

    wanted = TOOL["function"]
    form = wanted["parameters"]
    schema = FunctionSchema(
        wanted["name"], wanted["description"], form["properties"], form["required"], handler=get_weather
    )
    context = LLMContext(WEATHER, tools=[schema], tool_choice="required")
    frames = await run(model(), LLMContextFrame(context), until=FunctionCallResultFrame)
    results = [frame for frame in frames if isinstance(frame, FunctionCallResultFrame)]
    return [[frame.function_name, json.dumps(frame.arguments)] for frame in results]


async def form() -> str:
    return await model().run_inference(LLMContext([{"role": "user", "content": ANN}]), response_schema=PERSON)


async def speak_and_hear() -> str:
    return await hear(OpenAISTTService(**SERVER, settings=OpenAISTTService.Settings(model="hear")))


async def hear_live() -> str:
    ear = OpenAIRealtimeSTTService(
        api_key="none",
        base_url=f"{URL.replace('http', 'ws', 1)}/realtime",
        turn_detection={"type": "server_vad"},
        settings=OpenAIRealtimeSTTService.Settings(model="hear"),
    )
    return await hear(ear)


answer(chat, stream, tools, form, speak_and_hear, hear_live)
