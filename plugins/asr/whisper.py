"""Whisper as the core sees it: a window goes through short steps, each shared with windows of other requests.

A window is encoded, then heard at a temperature; if the text fails Whisper's checks it is heard again at the next one, in
a later step, with whoever is there then. Text whose end was not heard is encoded again from its last timestamp. Then its
words are aligned and its voices embedded, if that is wanted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sixfold.core.batching.model import Granted, ModelInfo, Outcome, StepRange
from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Cost
from sixfold.plugins.asr.backend import FRAMES_PER_S, WINDOW_FRAMES, Mel, WhisperBackend
from sixfold.plugins.asr.fallback import Attempt, best, compression_ratio, temperatures
from sixfold.plugins.asr.job import Job
from sixfold.plugins.asr.schema import AsrOutput, TranscribeInput
from sixfold.plugins.asr.segments import make_segments
from sixfold.plugins.asr.speakers import SpeakerModel
from sixfold.plugins.asr.tokens import Tokens, TokensOf
from sixfold.plugins.asr.whisper_sequence import Stage, WhisperSequence
from sixfold.plugins.asr.window_model import WindowModel, window_done
from sixfold.plugins.asr.windows import AudioWindow

_FRAMES_PER_GENERATE_UNIT = 4
"""Hearing 30 s in a batch takes about a quarter of the time of encoding them (base, int8, two cores)."""
_MIN_UNITS = 100
_MIN_REST_FRAMES = 20
"""Less than this behind the last timestamp is not heard again: 0.2 s holds no word."""
_MAX_ENCODED_WINDOWS = 64
"""Encoded windows that may be held at once: 3 MB each for base, 8 MB for large."""


class WhisperModel(WindowModel[WhisperSequence]):
    """A loaded Whisper.

    Args:
        backend: The library.
        info: What the loader found out.
        max_audio_s: Longest audio of one request.
        speakers: Tells voices apart, or None.
    """

    def __init__(
        self, backend: WhisperBackend, *, info: ModelInfo, max_audio_s: float, speakers: SpeakerModel | None
    ) -> None:
        super().__init__(info=info, max_audio_s=max_audio_s, speakers=speakers)
        self._backend = backend
        self._tokens_of = TokensOf(backend)
        self._num_encoded = 0
        self._num_fallbacks = 0
        self._num_tokens = 0

    @property
    def step_range(self) -> StepRange:
        """From two encoded windows (or eight that are heard) to what still fits any memory."""
        return StepRange(min_units=2 * WINDOW_FRAMES, initial_units=4 * WINDOW_FRAMES, max_units=32 * WINDOW_FRAMES)

    def window_units(self, num_frames: int) -> int:
        """See `WindowModel`: the encoder's 3000 frames, whatever the window's length, and hearing what is in it."""
        return WINDOW_FRAMES + max(_MIN_UNITS, num_frames // _FRAMES_PER_GENERATE_UNIT)

    def check(self, wanted: TranscribeInput) -> None:
        """See `WindowModel`."""
        if wanted.language is not None and not self._tokens_of.has_language(wanted.language):
            raise InvalidRequest(f"The model does not know the language {wanted.language!r}.", param="language")
        if wanted.task == "translate" and not self._backend.is_multilingual:
            raise InvalidRequest("The model knows English only and can't translate.", param="model")
        self._check_diarization(wanted)

    def features(self, samples: NDArray[np.float32]) -> Mel:
        """See `WindowModel`."""
        return self._backend.features(samples)

    def make_sequence(self, job: Job, index: int, window: AudioWindow, mel: Mel) -> WhisperSequence:
        """See `WindowModel`."""
        sequence = WhisperSequence(job, index, window, mel)
        if not self._backend.is_multilingual:
            job.language = "en"
        sequence.prefix = self._tokens_of(job.language or "en", job.wanted.task).prefix(job.wanted.prompt)
        return sequence

    def cost(self, sequence: WhisperSequence) -> Cost:
        """See `StepModel`. Units are frames of the encoder; the other stages count in what they take of its time."""
        if sequence.num_frames == 0:
            return Cost(units=1, min_units=1, batch_key=(Stage.ENCODE,))
        if sequence.stage is Stage.ENCODE:
            return Cost(units=WINDOW_FRAMES, min_units=WINDOW_FRAMES, batch_key=(Stage.ENCODE,))
        units = max(_MIN_UNITS, sequence.rest_frames // _FRAMES_PER_GENERATE_UNIT)
        key: tuple[object, ...] = (sequence.stage,)
        if sequence.stage is Stage.GENERATE:
            # CTranslate2 wants the start token at the same place in every row.
            key = (sequence.stage, sequence.temperature, len(sequence.prefix))
        elif sequence.stage is Stage.ALIGN:
            key = (sequence.stage, self._tokens(sequence).start)
        return Cost(units=units, min_units=units, batch_key=key)

    def reserve(self, sequence: WhisperSequence, units: int) -> int:
        """A window that is to be encoded takes one of the slots; nothing running ever needs another."""
        if sequence.holds_slot:
            return units
        if self._num_encoded >= _MAX_ENCODED_WINDOWS:
            return 0
        sequence.holds_slot = True
        self._num_encoded += 1
        return units

    def release(self, sequence: WhisperSequence) -> None:
        """See `StepModel`."""
        self._num_encoded -= sequence.holds_slot
        sequence.holds_slot = False
        sequence.row = None
        sequence.mel = np.zeros((1, 0), dtype=np.float32)
        sequence.samples = None

    def step(self, batch: Sequence[Granted[WhisperSequence]]) -> Sequence[Outcome[AsrOutput]]:
        """Takes all windows of the batch, which are in one stage, one stage further."""
        began_s = time.perf_counter()
        windows = [granted.sequence for granted in batch]
        real = [window for window in windows if window.num_frames]
        if real:
            stage = real[0].stage
            if stage is Stage.ENCODE:
                self._encode(real)
            elif stage is Stage.GENERATE:
                self._generate(real)
            elif stage is Stage.ALIGN:
                self._align(real)
            else:
                self._embed(real)
        done = [window for window in windows if window.rest_frames <= 0 and window.stage is Stage.ENCODE]
        self._count(done, time.perf_counter() - began_s)
        return [Outcome(output=window_done(w), done=True) if w in done else Outcome() for w in windows]

    def warm_up(self) -> None:
        """Encodes and hears silence once."""
        silence = np.zeros(16_000, dtype=np.float32)
        rows = self._backend.encode([self._backend.features(silence)] * 2)
        tokens = self._tokens_of("en", "transcribe")
        self._backend.generate(rows, [tokens.start] * 2, temperature=0.0, suppressed=tokens.suppressed)
        self._detector.get()

    def stats(self) -> Mapping[str, float]:
        """See `Family.metrics` in plugin.py."""
        return {
            **super().stats(),
            "audio_fallbacks_total": self._num_fallbacks,
            "audio_encoded_windows": self._num_encoded,
            "generation_tokens_total": self._num_tokens,
        }

    def close(self) -> None:
        """See `StepModel`."""
        self._backend.close()

    def _tokens(self, window: WhisperSequence) -> Tokens:
        language = window.job.language
        assert language is not None
        return self._tokens_of(language, window.job.wanted.task)

    def _encode(self, windows: Sequence[WhisperSequence]) -> None:
        rows = self._backend.encode([window.mel[:, window.seek :] for window in windows])
        self._detect(windows, rows)
        for window, row in zip(windows, rows, strict=True):
            window.row = row
            window.stage = Stage.GENERATE

    def _detect(self, windows: Sequence[WhisperSequence], rows: Sequence[Any]) -> None:
        """Every job without a language gets that of its first window, so that it does not depend on the batch."""
        jobs = {id(window.job): window.job for window in windows if window.job.language is None}
        if not jobs:
            return
        first = {id(w.job): row for w, row in zip(windows, rows, strict=True) if w.index == 0 and w.seek == 0}
        missing = [job for key, job in jobs.items() if key not in first and job.first_mel is not None]
        if missing:
            encoded = self._backend.encode([job.first_mel for job in missing if job.first_mel is not None])
            first |= {id(job): row for job, row in zip(missing, encoded, strict=True)}
        found = self._backend.detect_language([first[key] for key in jobs])
        for job, (language, _probability) in zip(jobs.values(), found, strict=True):
            job.language = language
            job.first_mel = None

    def _generate(self, windows: Sequence[WhisperSequence]) -> None:
        tokens = [self._tokens(window) for window in windows]
        temperature = windows[0].temperature
        found = self._backend.generate(
            [window.row for window in windows],
            [(*window.prefix, *its.start) for window, its in zip(windows, tokens, strict=True)],
            temperature=temperature,
            suppressed=tokens[0].suppressed,
        )
        for window, its, hypothesis in zip(windows, tokens, found, strict=True):
            self._num_tokens += len(hypothesis.token_ids)
            ratio = compression_ratio(its.text(hypothesis.token_ids).strip())
            window.attempts.append(Attempt(hypothesis, temperature, ratio))
            num_left = len(temperatures(window.job.wanted.temperature)) - len(window.attempts)
            if num_left and not window.attempts[-1].is_good:
                self._num_fallbacks += 1
            else:
                self._accept(window, its)

    def _accept(self, window: WhisperSequence, tokens: Tokens) -> None:
        attempt = best(window.attempts)
        window.attempts = [attempt]
        window.phrases, window.heard = [], window.rest_frames
        if not attempt.is_silence:
            window.phrases, window.heard = tokens.phrases(attempt.hypothesis.token_ids, num_frames=window.rest_frames)
        wanted = window.job.wanted
        has_text = any(tokens.text_ids(phrase.token_ids) for phrase in window.phrases)
        if has_text and (wanted.wants_words or wanted.wants_logprobs or wanted.diarizes):
            window.stage = Stage.ALIGN
        else:
            self._advance(window, make_segments(window, tokens, None))

    def _align(self, windows: Sequence[WhisperSequence]) -> None:
        tokens = [self._tokens(window) for window in windows]
        texts = [
            tuple(t for phrase in window.phrases for t in its.text_ids(phrase.token_ids))
            for window, its in zip(windows, tokens, strict=True)
        ]
        found = self._backend.align(
            [window.row for window in windows],
            tokens[0].start,
            texts,
            [window.rest_frames for window in windows],
        )
        for window, its, alignment in zip(windows, tokens, found, strict=True):
            self._advance(window, make_segments(window, its, alignment))

    def _advance(self, window: WhisperSequence, segments: Sequence[Any]) -> None:
        """Keeps the segments and goes on behind them."""
        window.segments += segments
        window.seek += max(window.heard, _MIN_REST_FRAMES)  # always forwards
        window.row = None
        window.attempts, window.phrases = [], []
        window.stage = Stage.ENCODE
        if window.rest_frames < _MIN_REST_FRAMES or not self._has_speech_left(window):
            window.seek = window.num_frames
            if window.voices:
                window.stage = Stage.EMBED

    def _has_speech_left(self, window: WhisperSequence) -> bool:
        at_s = window.start_s + (window.seek + _MIN_REST_FRAMES) / FRAMES_PER_S
        return window.last_speech_s > at_s

    def _embed(self, windows: Sequence[WhisperSequence]) -> None:
        assert self._speakers is not None
        self._speakers.embed_regions([(window.samples, window.voices) for window in windows])
        for window in windows:
            window.stage = Stage.ENCODE
