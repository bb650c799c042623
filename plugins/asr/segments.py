"""Makes segments with times of the file from the phrases of a window."""

from __future__ import annotations

from sixfold.plugins.asr.backend import FRAMES_PER_S, Alignment
from sixfold.plugins.asr.fallback import compression_ratio
from sixfold.plugins.asr.schema import Segment, TokenLogprob, Word
from sixfold.plugins.asr.tokens import Tokens
from sixfold.plugins.asr.whisper_sequence import WhisperSequence
from sixfold.plugins.asr.words import TimedWord, timed_words, token_logprobs


def make_segments(window: WhisperSequence, tokens: Tokens, alignment: Alignment | None) -> list[Segment]:
    """The segments of what was heard last; phrases without text or without duration are left out.

    Args:
        window: With its phrases and the attempt that they come from.
        tokens: Of the window's language.
        alignment: Of all text tokens of the phrases, if words or probabilities are wanted.
    """
    attempt = window.attempts[-1]
    offset_s = window.start_s + window.seek / FRAMES_PER_S
    end_s = window.start_s + window.num_frames / FRAMES_PER_S
    text_ids = [t for phrase in window.phrases for t in tokens.text_ids(phrase.token_ids)]
    words: list[TimedWord] = []
    logprobs: tuple[TokenLogprob, ...] = ()
    if alignment is not None:
        words = timed_words(tokens, text_ids, alignment, offset_s=offset_s)
        logprobs = token_logprobs(tokens, text_ids, alignment) if window.job.wanted.wants_logprobs else ()
    found: list[Segment] = []
    at = 0
    for phrase in window.phrases:
        num_text = len(tokens.text_ids(phrase.token_ids))
        text = tokens.text(phrase.token_ids)
        mine = _words_between(words, at, at + num_text)
        its_logprobs = logprobs[at : at + num_text]
        at += num_text
        if phrase.start_s == phrase.stop_s or not text.strip():
            continue
        found.append(
            Segment(
                text=text,
                start_s=round(min(offset_s + phrase.start_s, end_s), 3),
                end_s=round(min(offset_s + phrase.stop_s, end_s), 3),
                seek_frames=round(offset_s * FRAMES_PER_S),
                token_ids=phrase.token_ids,
                temperature=attempt.temperature,
                avg_logprob=attempt.hypothesis.avg_logprob,
                compression_ratio=compression_ratio(text.strip()),
                no_speech_prob=attempt.hypothesis.no_speech_prob,
                words=mine,
                logprobs=its_logprobs,
            )
        )
    return found


def _words_between(words: list[TimedWord], start: int, stop: int) -> tuple[Word, ...]:
    """The words whose first token is among these."""
    found: list[Word] = []
    at = 0
    for timed in words:
        if start <= at < stop:
            found.append(timed.word)
        at += timed.num_tokens
    return tuple(found)
