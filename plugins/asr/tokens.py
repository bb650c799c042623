"""Whisper's tokens: prompts, texts, phrases between timestamps, words."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sixfold.plugins.asr.backend import FRAMES_PER_S, WhisperBackend
from sixfold.plugins.asr.schema import Task
from sixfold.plugins.asr.untyped import faster_whisper_tokenizer, faster_whisper_transcribe

_S_PER_TIMESTAMP = 0.02


@dataclass(frozen=True, slots=True)
class Phrase:
    """A part of a window's tokens, with its times in seconds of the window."""

    start_s: float
    stop_s: float
    token_ids: tuple[int, ...]


class Tokens:
    """The tokens of one model for one language and task; made by `TokensOf`.

    Args:
        tokenizer: The library's view of them.
        max_prompt_tokens: What is kept of a prompt, its end.
    """

    def __init__(self, tokenizer: Any, max_prompt_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens
        self.start: tuple[int, ...] = tuple(tokenizer.sot_sequence)
        self.end_of_text: int = tokenizer.eot
        self.first_timestamp: int = tokenizer.timestamp_begin
        self.suppressed: tuple[int, ...] = tuple(faster_whisper_transcribe.get_suppressed_tokens(tokenizer, [-1]))

    def prefix(self, prompt: str) -> tuple[int, ...]:
        """What stands before the start tokens for this prompt."""
        if not prompt.strip():
            return ()
        ids = self._tokenizer.encode(" " + prompt.strip())[-self._max_prompt_tokens :]
        return (self._tokenizer.sot_prev, *ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text, without timestamps."""
        decoded: str = self._tokenizer.decode(list(token_ids))
        return decoded

    def text_ids(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The ids without timestamps and special tokens."""
        return tuple(token for token in token_ids if token < self.end_of_text)

    def words(self, text_ids: Sequence[int]) -> list[tuple[str, int]]:
        """The words of a text and how many tokens each has; they add up to the text's."""
        words, word_tokens = self._tokenizer.split_to_word_tokens([*text_ids, self.end_of_text])
        return [(word, len(ids)) for word, ids in zip(words[:-1], word_tokens[:-1], strict=True)]

    def phrases(self, token_ids: Sequence[int], *, num_frames: int) -> tuple[list[Phrase], int]:
        """Cuts a window's tokens at pairs of timestamps.

        Returns:
            (phrases, frames that were heard). The rest must be heard again from there: text after the last pair has no
            end, it would go on in what follows. Source: OpenAI's whisper, transcribe.py.
        """
        is_time = [token >= self.first_timestamp for token in token_ids]
        cuts = [i for i in range(1, len(token_ids)) if is_time[i] and is_time[i - 1]]
        ends_once = len(token_ids) >= 2 and is_time[-1] and not is_time[-2]
        if not cuts:
            times = [self._time_s(token) for token in token_ids if token > self.first_timestamp]
            stop_s = times[-1] if times else num_frames / FRAMES_PER_S
            return [Phrase(0.0, stop_s, tuple(token_ids))], num_frames
        found: list[Phrase] = []
        begin = 0
        for cut in [*cuts, len(token_ids)] if ends_once else cuts:
            part = tuple(token_ids[begin:cut])
            found.append(Phrase(self._time_s(part[0]), self._time_s(part[-1]), part))
            begin = cut
        heard = num_frames if ends_once else round(self._time_s(token_ids[begin - 1]) * FRAMES_PER_S)
        return found, min(heard, num_frames)

    def _time_s(self, token: int) -> float:
        return (token - self.first_timestamp) * _S_PER_TIMESTAMP


class TokensOf:
    """Makes `Tokens` of a model, each once. Thread-safe."""

    def __init__(self, backend: WhisperBackend) -> None:
        self._backend = backend
        self._make = functools.cache(self._build)

    def __call__(self, language: str, task: Task) -> Tokens:
        """The tokens for a language code that the model has."""
        return self._make(language, task)

    def has_language(self, language: str) -> bool:
        """Whether the model was trained on it."""
        if not self._backend.is_multilingual:
            return language == "en"
        return self._backend.tokenizer.token_to_id(f"<|{language}|>") is not None

    def _build(self, language: str, task: Task) -> Tokens:
        backend = self._backend
        tokenizer: Any = faster_whisper_tokenizer.Tokenizer(
            backend.tokenizer, backend.is_multilingual, task=task, language=language
        )
        return Tokens(tokenizer, backend.max_length_tokens // 2 - 1)
