"""Chooses between two ways to be fast that exclude each other: guesses need the tokens of a step before the next one begins,
and steps that begin ahead do not wait for them. Which gives more depends on the text, the model and the host, so both are
measured where they run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Steps of a trial. The first ones after a change are the other way's.
_TRIAL, _LEFT_OUT = 32, 2
# Steps between trials of the slower way: twice as many each time it stays slower.
_MIN_PAUSE, _MAX_PAUSE = 512, 8192
_MARGIN = 1.02  # less is what two measurements of the same differ by
_BLEND = 1 / 64


@dataclass(slots=True)
class _Way:
    """Seconds of a token, those of a trial and since.

    Attributes:
        num_steps: Measured.
        seconds_a_token: Their mean, later ones counting more; infinite until there is one.
    """

    num_steps: int = 0
    seconds_a_token: float = float("inf")

    def observe(self, num_tokens: int, seconds: float) -> None:
        self.num_steps += 1
        found = seconds / num_tokens
        if self.num_steps == 1:
            self.seconds_a_token = found
        else:
            self.seconds_a_token += max(1 / self.num_steps, _BLEND) * (found - self.seconds_a_token)


@dataclass(slots=True)
class _Bucket:
    """Steps of about as many sequences.

    Attributes:
        guesses: The way in use.
        best: The way in use unless the other one is tried.
        left_out: Steps to come that are not measured.
        left: Steps to come until the way changes or is judged.
        pause: Steps between the last two trials.
        is_trying: Whether this is a trial.
    """

    guesses: bool = True
    best: bool = True
    left_out: int = 0
    left: int = _TRIAL
    pause: int = 0
    is_trying: bool = True
    ways: Mapping[bool, _Way] = field(default_factory=lambda: {True: _Way(), False: _Way()})


class GuessChoice:
    """See the module. Owned by the device thread. Starts with guesses."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}

    def guesses(self, num_sequences: int) -> bool:
        """Whether a step of so many sequences waits for its tokens, so that the next ones are guessed."""
        bucket = self._buckets.get(num_sequences.bit_length())
        return True if bucket is None else bucket.guesses

    def seconds_a_token(self, num_sequences: int) -> tuple[float, float]:
        """With guesses, and with steps that begin ahead; infinite where it is not known."""
        bucket = self._buckets.get(num_sequences.bit_length(), _Bucket())
        return bucket.ways[True].seconds_a_token, bucket.ways[False].seconds_a_token

    def observe(self, num_sequences: int, *, guessed: bool, num_tokens: int, seconds: float) -> bool:
        """A step was done right after another one of as many sequences.

        Args:
            num_sequences: That it decoded.
            guessed: Whether it waited for the one before.
            num_tokens: That it gave, right guesses included.
            seconds: Since the one before.

        Returns:
            Whether another way has proved to be the better one.
        """
        bucket = self._buckets.setdefault(num_sequences.bit_length(), _Bucket())
        if guessed != bucket.guesses or num_tokens < 1:
            return False  # of before a change
        if bucket.left_out > 0:
            bucket.left_out -= 1
            return False
        bucket.ways[guessed].observe(num_tokens, seconds)
        bucket.left -= 1
        if bucket.left > 0:
            return False
        return self._judge(bucket) if bucket.is_trying else self._try_other(bucket)

    def _judge(self, bucket: _Bucket) -> bool:
        """At the end of a trial."""
        if not bucket.ways[not bucket.guesses].num_steps:
            self._use(bucket, not bucket.guesses, steps=_TRIAL, is_trying=True)  # neither is known yet
            return False
        before, other = bucket.best, not bucket.best
        if bucket.ways[other].seconds_a_token * _MARGIN < bucket.ways[before].seconds_a_token:
            bucket.best, bucket.pause = other, 0
        bucket.pause = min(max(2 * bucket.pause, _MIN_PAUSE), _MAX_PAUSE)
        self._use(bucket, bucket.best, steps=bucket.pause, is_trying=False)
        return bucket.best != before

    def _try_other(self, bucket: _Bucket) -> bool:
        other = not bucket.guesses
        bucket.ways[other].num_steps = 0  # what was long ago counts for nothing
        self._use(bucket, other, steps=_TRIAL, is_trying=True)
        return False

    @staticmethod
    def _use(bucket: _Bucket, guesses: bool, *, steps: int, is_trying: bool) -> None:
        bucket.left_out = _LEFT_OUT if guesses != bucket.guesses else 0
        bucket.guesses, bucket.left, bucket.is_trying = guesses, steps, is_trying
