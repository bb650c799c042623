"""The HTTP face of speech recognition: OpenAI's transcriptions, translations and live transcription sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlette.responses import Response

from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.api import Call, ModalityAPI, Panel, Route, SocketRoute
from sixfold.plugins.asr import formats
from sixfold.plugins.asr.answers import TRANSCRIPTS
from sixfold.plugins.asr.forms import TranscriptionForm, TranslationForm
from sixfold.plugins.asr.realtime import RealtimeQuery, serve_realtime
from sixfold.plugins.asr.schema import KnownSpeaker, Task, Transcript

_MAX_REFERENCE_BYTES = 4 * 1024 * 1024
_MEDIA_TYPES = ("application/json", "text/plain", "text/event-stream")


class AsrAPI(ModalityAPI):
    """Serves every family of this modality."""

    modality = "asr"

    def routes(self) -> Sequence[Route | SocketRoute]:
        """Transcriptions, translations, and the live route."""
        return (
            Route(
                path="/v1/audio/transcriptions",
                endpoint=self.transcribe,
                form=TranscriptionForm,
                media_types=_MEDIA_TYPES,
                answer=TRANSCRIPTS,
                in_batches=True,
            ),
            Route(
                path="/v1/audio/translations",
                endpoint=self.translate,
                form=TranslationForm,
                media_types=_MEDIA_TYPES[:2],
                answer=TRANSCRIPTS,
                in_batches=True,
            ),
            SocketRoute(path="/v1/realtime", endpoint=serve_realtime, query_params=RealtimeQuery),
        )

    def panels(self) -> Sequence[Panel]:
        """The tab Transcribe."""
        script = Path(__file__).parent / "playground" / "transcribe.js"
        return (Panel(title="Transcribe", operation="transcribe", script=script, order=30),)

    async def transcribe(self, call: Call) -> Response:
        """Writes down what is said in a file.

        Raises:
            RequestError: The form or the file is wrong, or the request did not succeed.
        """
        form = await call.form(TranscriptionForm)
        form.check()
        model = await call.model(form.model, "transcribe")
        wanted = form.request_input(await _known_speakers(call, form))
        if form.stream:
            running = await call.start(model, wanted)
            events = formats.diarized_events if form.response_format == "diarized_json" else formats.text_events
            return call.stream_sse(events(running))
        transcript: Transcript = (await call.run(model, wanted)).result
        return _respond(call, transcript, form.response_format, "transcribe", form.timestamp_granularities)

    async def translate(self, call: Call) -> Response:
        """Writes down in English what is said in a file.

        Raises:
            RequestError: As `transcribe`.
        """
        form = await call.form(TranslationForm)
        model = await call.model(form.model, "translate")
        transcript: Transcript = (await call.run(model, form.request_input())).result
        return _respond(call, transcript, form.response_format, "translate", ())


def _respond(
    call: Call, transcript: Transcript, response_format: str, task: Task, granularities: Sequence[str]
) -> Response:
    if response_format in formats.TEXT_FORMATS:
        body = formats.text_body(transcript, response_format).encode()
        return call.respond(body, media_type="text/plain; charset=utf-8")
    if response_format == "verbose_json":
        return call.respond(formats.verbose_body(transcript, task=task, granularities=granularities))
    if response_format == "diarized_json":
        return call.respond(formats.diarized_body(transcript, task=task))
    return call.respond(formats.json_body(transcript))


async def _known_speakers(call: Call, form: TranscriptionForm) -> tuple[KnownSpeaker, ...]:
    found: list[KnownSpeaker] = []
    for name, url in zip(form.known_speaker_names, form.known_speaker_references, strict=True):
        try:
            fetched = await call.fetch(url, max_bytes=_MAX_REFERENCE_BYTES)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param="known_speaker_references") from None
        found.append(KnownSpeaker(name=name, audio=fetched.data))
    return tuple(found)
