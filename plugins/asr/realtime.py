"""``WS /v1/realtime``: live transcription with OpenAI's events. One `RealtimeSession` a socket, in the serving process.

Audio is only kept and counted here. The detector hears it in the worker, in small requests that carry its state; while one
is under way new audio gathers, so a slow worker gets larger chunks, not a longer queue.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from sixfold.core.errors import InvalidRequest, RequestCancelled, RequestError
from sixfold.core.serving.api import ServedModel, SocketCall
from sixfold.plugins.asr.formats import logprob_objects, ordered_deltas
from sixfold.plugins.asr.languages import language_code
from sixfold.plugins.asr.realtime_schema import (
    Append,
    AudioInput,
    BetaSessionUpdate,
    Clear,
    Commit,
    Include,
    RealtimeQuery,
    Session,
    SessionUpdate,
    Transcription,
    TurnDetection,
    event_id,
    parse_event,
)
from sixfold.plugins.asr.schema import SpeechProbabilities, TranscribeInput, Transcript, VadInput, VadState
from sixfold.plugins.asr.turns import SpeechStarted, TurnBuffer, TurnEnded

__all__ = ["RealtimeQuery", "serve_realtime"]

_MAX_TURNS_UNDER_WAY = 8
_MAX_UNHEARD_MS = 30_000  # of a session that has named no model


async def serve_realtime(socket: SocketCall) -> None:
    """Serves one socket until the client leaves.

    Raises:
        RequestError: The query string is wrong or names no model that transcribes.
    """
    query = socket.query(RealtimeQuery)
    model = None if query.model is None else await socket.model(query.model, "transcribe")
    session = RealtimeSession(socket, model)
    await session.send("session.created", session=session.described())
    try:
        async with asyncio.TaskGroup() as tasks:
            await session.run(tasks)
    except* RequestCancelled:
        pass  # the client left


class RealtimeSession:
    """The state of one socket; everything runs in its event loop.

    Args:
        socket: The client.
        model: Of the query string; a session update may name another.
    """

    def __init__(self, socket: SocketCall, model: ServedModel | None) -> None:
        self._socket = socket
        self._id = f"sess_{uuid.uuid4().hex[:24]}"
        self._numbers = itertools.count(1)
        self._model = model
        self._transcription = Transcription(model=None if model is None else model.name)
        self._turn_detection: TurnDetection | None = TurnDetection()
        self._include: Include = ()
        self._rate_hz = 24_000
        self._is_beta = False
        self._vad_state = VadState()
        self._buffer = self._new_buffer()
        self._wake = asyncio.Event()
        self._item_id = self._new_item_id()
        self._previous_item_id: str | None = None
        self._turns_under_way = asyncio.Semaphore(_MAX_TURNS_UNDER_WAY)

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Reads events to the end of the socket; turns are transcribed in tasks of their own."""
        listening = tasks.create_task(self._listen(tasks))
        while (message := await self._socket.receive()) is not None:
            try:
                await self._handle(parse_event(message), tasks)
            except RequestCancelled:
                raise
            except RequestError as error:
                await self._send_error(error, message)
        listening.cancel()

    async def send(self, event_type: str, **fields: object) -> None:
        """Sends an event with an id of its own."""
        event = {"type": event_type, "event_id": f"event_{self._id[5:]}_{next(self._numbers)}", **fields}
        await self._socket.send(msgspec.json.encode(event).decode())

    def described(self) -> Mapping[str, Any]:
        """The session as events show it."""
        transcription = {"model": self._transcription.model, "language": self._transcription.language}
        transcription["prompt"] = self._transcription.prompt
        detection = None if self._turn_detection is None else self._turn_detection.model_dump(exclude_none=True)
        if self._is_beta:
            return {
                "id": self._id,
                "object": "realtime.transcription_session",
                "input_audio_format": "pcm16",
                "input_audio_transcription": transcription,
                "turn_detection": detection,
                "include": self._include,
            }
        audio = {
            "format": {"type": "audio/pcm", "rate": self._rate_hz},
            "noise_reduction": None,
            "transcription": transcription,
            "turn_detection": detection,
        }
        return {
            "id": self._id,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {"input": audio},
            "include": self._include,
        }

    async def _handle(self, event: object, tasks: asyncio.TaskGroup) -> None:
        if isinstance(event, Append):
            # Some clients stream while their session.update is under way: what comes before it waits.
            if self._buffer.duration_ms > _MAX_UNHEARD_MS:
                self._require_model()
            self._buffer.append(event.samples())
            self._wake.set()
        elif isinstance(event, Commit):
            self._require_model()
            await self._commit(self._buffer.commit(), tasks)
            self._vad_state = VadState()
        elif isinstance(event, Clear):
            self._buffer.clear()
            self._vad_state = VadState()
            await self.send("input_audio_buffer.cleared")
        elif isinstance(event, SessionUpdate):
            await self._update(event.session)
            await self.send("session.updated", session=self.described())
        elif isinstance(event, BetaSessionUpdate):
            self._is_beta = True
            await self._update(event.session.as_session())
            await self.send("transcription_session.updated", session=self.described())

    async def _update(self, session: Session) -> None:
        """Takes over what was given; all of it or, if something is wrong, nothing."""
        given: AudioInput = session.audio.input
        transcription = given.transcription or self._transcription
        if transcription.model is None:
            transcription = transcription.model_copy(update={"model": self._transcription.model})
        if transcription.language is not None and language_code(transcription.language) is None:
            raise InvalidRequest(
                f"Unknown language {transcription.language[:40]!r}.", param="session.audio.input.transcription.language"
            )
        model = self._model
        if transcription.model is not None and transcription.model != self._transcription.model:
            model = await self._socket.model(transcription.model, "transcribe")
        rate_hz = self._rate_hz if given.format is None else given.format.rate
        detection = given.turn_detection if "turn_detection" in given.model_fields_set else self._turn_detection
        changes_hearing = (rate_hz, detection) != (self._rate_hz, self._turn_detection)
        if changes_hearing and self._model is not None and self._buffer.duration_ms:
            raise InvalidRequest(
                "The audio format and the turn detection can't change while audio waits. Commit or clear the buffer first.",
                param="session.audio.input",
            )
        self._model, self._transcription = model, transcription
        if changes_hearing:
            waiting = self._buffer.clear()  # of a session without a model: nobody has heard it
            self._rate_hz, self._turn_detection = rate_hz, detection
            self._buffer, self._vad_state = self._new_buffer(), VadState()
            self._buffer.append(waiting)
        self._wake.set()
        if session.include is not None:
            self._include = session.include

    async def _listen(self, tasks: asyncio.TaskGroup) -> None:
        """Has the detector hear what came and ends turns."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._model is not None and (pcm := self._buffer.unheard()):
                buffer, state = self._buffer, self._vad_state
                try:
                    finished = await self._socket.run(self._model, VadInput(pcm=pcm, pcm_hz=self._rate_hz, state=state))
                except RequestCancelled:
                    raise
                except RequestError as error:
                    # Without the detector no turn would ever end: the audio goes, and the client is told.
                    self._buffer.clear()
                    await self._send_error(error, None)
                    continue
                heard: SpeechProbabilities = finished.result
                if buffer is not self._buffer or state is not self._vad_state:
                    continue  # cleared, committed or reconfigured meanwhile
                self._vad_state = heard.state
                for happened in buffer.hear(heard.values):
                    await self._tell(happened, tasks)

    async def _tell(self, happened: SpeechStarted | TurnEnded, tasks: asyncio.TaskGroup) -> None:
        if isinstance(happened, SpeechStarted):
            await self.send("input_audio_buffer.speech_started", audio_start_ms=happened.at_ms, item_id=self._item_id)
        else:
            await self.send("input_audio_buffer.speech_stopped", audio_end_ms=happened.at_ms, item_id=self._item_id)
            await self._commit(happened.audio, tasks)

    async def _commit(self, audio: bytes, tasks: asyncio.TaskGroup) -> None:
        item_id, self._item_id = self._item_id, self._new_item_id()
        previous, self._previous_item_id = self._previous_item_id, item_id
        await self.send("input_audio_buffer.committed", previous_item_id=previous, item_id=item_id)
        item = {
            "id": item_id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        for name in ("created",) if self._is_beta else ("added", "done"):
            await self.send(f"conversation.item.{name}", previous_item_id=previous, item=item)
        # A client that sends faster than the model hears waits here, and with it its socket.
        await self._turns_under_way.acquire()
        tasks.create_task(self._transcribe(item_id, audio))

    async def _transcribe(self, item_id: str, audio: bytes) -> None:
        name = "conversation.item.input_audio_transcription"
        place = {"item_id": item_id, "content_index": 0}
        try:
            running = await self._socket.start(self._require_model(), self._turn_input(audio))
            async for delta in ordered_deltas(running):
                segments = delta.segments if isinstance(delta, Transcript) else (delta,)
                logprobs = [one for segment in segments for one in segment.logprobs]
                extra = {"logprobs": logprob_objects(logprobs)} if self._include else {}
                if isinstance(delta, Transcript):
                    usage = {"type": "duration", "seconds": delta.duration_s}
                    await self.send(f"{name}.completed", **place, transcript=delta.text, usage=usage, **extra)
                else:
                    await self.send(f"{name}.delta", **place, delta=delta.text, **extra)
        except RequestCancelled:
            raise
        except RequestError as error:
            await self.send(f"{name}.failed", **place, error=_error_object(error))
        finally:
            self._turns_under_way.release()

    def _turn_input(self, audio: bytes) -> TranscribeInput:
        wanted = self._transcription
        return TranscribeInput(
            audio=audio,
            pcm_hz=self._rate_hz,
            language=None if wanted.language is None else language_code(wanted.language),
            prompt=wanted.prompt,
            wants_logprobs=bool(self._include),
            streams=True,
        )

    def _require_model(self) -> ServedModel:
        if self._model is None:
            raise InvalidRequest(
                "No model is chosen. Connect with ?model=NAME, or send session.update with audio.input.transcription.model.",
                param="session.audio.input.transcription.model",
            )
        return self._model

    def _new_buffer(self) -> TurnBuffer:
        detection = self._turn_detection
        if detection is None:
            return TurnBuffer(rate_hz=self._rate_hz, threshold=None)
        return TurnBuffer(
            rate_hz=self._rate_hz,
            threshold=detection.threshold,
            prefix_ms=detection.prefix_padding_ms,
            silence_ms=detection.silence_duration_ms,
        )

    def _new_item_id(self) -> str:
        return f"item_{uuid.uuid4().hex[:20]}"

    async def _send_error(self, error: RequestError, message: str | bytes | None) -> None:
        await self.send("error", error=_error_object(error) | {"event_id": event_id(message)})


def _error_object(error: RequestError) -> dict[str, object]:
    return {"type": error.type, "code": error.code, "message": error.message, "param": error.param}
