"""From aligned tokens to words with times: punctuation joins its word, and words do not swallow pauses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sixfold.plugins.asr.backend import Alignment
from sixfold.plugins.asr.schema import TokenLogprob, Word
from sixfold.plugins.asr.tokens import Tokens

_OPENING = "\"'“¿([{-"
_CLOSING = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 - Chinese and Japanese punctuation is meant
_SENTENCE_ENDS = (".", "。", "!", "！", "?", "？")  # noqa: RUF001 - likewise
_MAX_MEDIAN_S = 0.7


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word of a window and how many text tokens it takes."""

    word: Word
    num_tokens: int


def timed_words(tokens: Tokens, text_ids: Sequence[int], alignment: Alignment, *, offset_s: float) -> list[TimedWord]:
    """The words of a text in order.

    A word's time is from its first token to the next word's. The first word after a pause would begin where the pause
    does, and the last would end where it ends: words longer than twice the median are cut on that side.

    Args:
        tokens: Of the window's language.
        text_ids: Without timestamps.
        alignment: Of these ids.
        offset_s: Added to all times.
    """
    found: list[TimedWord] = []
    at = 0
    for text, num_tokens in tokens.words(text_ids):
        stop = at + num_tokens
        probability = statistics.fmean(alignment.token_probs[at:stop])
        start_s, end_s = alignment.token_starts_s[at], alignment.token_starts_s[stop]
        found.append(TimedWord(Word(text=text, start_s=start_s, end_s=end_s, probability=probability), num_tokens))
        at = stop
    joined = _join(found)
    longest_s = 2 * _median_s(joined)
    return [
        TimedWord(_trimmed(timed.word, index, joined, longest_s, offset_s), timed.num_tokens)
        for index, timed in enumerate(joined)
    ]


def token_logprobs(tokens: Tokens, text_ids: Sequence[int], alignment: Alignment) -> tuple[TokenLogprob, ...]:
    """The tokens of a text with their log probabilities."""
    return tuple(
        TokenLogprob(token=text, token_bytes=text.encode(), logprob=math.log(max(probability, 1e-10)))
        for text, probability in zip((tokens.text([i]) for i in text_ids), alignment.token_probs, strict=True)
    )


def _join(words: Sequence[TimedWord]) -> list[TimedWord]:
    """Puts opening punctuation before the word that follows and closing punctuation behind the word before."""
    found: list[TimedWord] = []
    opening: TimedWord | None = None
    for item in words:
        text = item.word.text
        if opening is not None:
            item, opening = _merged(opening, item), None
        elif text.startswith(" ") and text.strip() and text.strip() in _OPENING:
            opening = item
            continue
        elif found and text and text in _CLOSING and not found[-1].word.text.endswith(" "):
            found[-1] = _merged(found[-1], item, closing=True)
            continue
        found.append(item)
    return [*found, opening] if opening is not None else found


def _merged(first: TimedWord, second: TimedWord, *, closing: bool = False) -> TimedWord:
    kept, left, right = (first if closing else second).word, first.word, second.word
    word = Word(text=left.text + right.text, start_s=kept.start_s, end_s=kept.end_s, probability=kept.probability)
    return TimedWord(word, first.num_tokens + second.num_tokens)


def _median_s(words: Sequence[TimedWord]) -> float:
    durations = [timed.word.end_s - timed.word.start_s for timed in words if timed.word.end_s > timed.word.start_s]
    return min(_MAX_MEDIAN_S, statistics.median(durations)) if durations else _MAX_MEDIAN_S


def _trimmed(word: Word, index: int, words: Sequence[TimedWord], longest_s: float, offset_s: float) -> Word:
    start_s, end_s = word.start_s, word.end_s
    if end_s - start_s > longest_s:
        if index == 0 or words[index - 1].word.text.rstrip().endswith(_SENTENCE_ENDS):
            start_s = end_s - longest_s
        else:
            end_s = start_s + longest_s
    return Word(
        text=word.text,
        start_s=round(offset_s + start_s, 3),
        end_s=round(offset_s + end_s, 3),
        probability=word.probability,
    )
