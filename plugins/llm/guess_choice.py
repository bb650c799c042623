"""Chooses between two ways to be fast that exclude each other: guesses need the tokens of a step before the next one begins,
and steps that begin ahead do not wait for them. Which gives more depends on the text, the model and the host, so both are
measured where they run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Steps of a trial. The first ones after a change are the other way's.
_TRIAL, _LEFT_OUT = 32, 2
# A trial that is not over after so many steps was kept from its way: by grammars, or a device that nothing can be begun on.
_GIVE_UP = 8 * _TRIAL
# Steps between trials of the slower way: twice as many each time it stays slower.
_MIN_PAUSE, _MAX_PAUSE = 512, 8192
_MARGIN = 1.02  # less is what two measurements of the same differ by
_BLEND = 1 / 64
_SLOW, _FEW_STEPS = 4.0, 4  # a step that takes so many times the mean was not slow by its way


@dataclass(slots=True)
class _Way:
    """What a token takes, in a trial and since.

    Attributes:
        num_steps: Measured.
        seconds: Between two tokens of a sequence, the mean, later ones counting more; infinite until there is one.
    """

    num_steps: int = 0
    seconds: float = float("inf")

    def observe(self, seconds: float) -> None:
        self.num_steps += 1
        if self.num_steps == 1:
            self.seconds = seconds
            return
        if self.num_steps > _FEW_STEPS:
            seconds = min(seconds, _SLOW * self.seconds)
        self.seconds += max(1 / self.num_steps, _BLEND) * (seconds - self.seconds)


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
        num_asked: How often it was asked since the way in use is in use.
    """

    guesses: bool = True
    best: bool = True
    left_out: int = 0
    left: int = _TRIAL
    pause: int = 0
    is_trying: bool = True
    num_asked: int = 0
    ways: Mapping[bool, _Way] = field(default_factory=lambda: {True: _Way(), False: _Way()})


class GuessChoice:
    """See the module. Owned by the device thread. Starts with guesses."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}

    def guesses(self, num_sequences: int) -> bool:
        """Whether the next step, of so many sequences, waits for its tokens, so that others are guessed. Asked once a step."""
        bucket = self._buckets.setdefault(num_sequences.bit_length(), _Bucket())
        bucket.num_asked += 1
        if bucket.is_trying and bucket.num_asked > _GIVE_UP:
            self._rest(bucket)
        return bucket.guesses

    def seconds(self, num_sequences: int) -> tuple[float, float]:
        """Between two tokens of a sequence, with guesses and with steps that begin ahead; infinite where it is not known."""
        bucket = self._buckets.get(num_sequences.bit_length(), _Bucket())
        return bucket.ways[True].seconds, bucket.ways[False].seconds

    def observe(self, num_sequences: int, *, guessed: bool, num_tokens: int, seconds: float) -> bool:
        """A step was done right after another one that decoded, too.

        Args:
            num_sequences: That it decoded.
            guessed: Whether the step after it waits for its tokens.
            num_tokens: That it gave, right guesses included.
            seconds: Since the one before was done.

        Returns:
            Whether another way has proved to be the better one.
        """
        bucket = self._buckets.setdefault(num_sequences.bit_length(), _Bucket())
        if guessed != bucket.guesses or num_tokens < 1:
            return False  # of before a change, or of a way that it was kept from
        if bucket.left_out > 0:
            bucket.left_out -= 1
            return False
        bucket.ways[guessed].observe(seconds * num_sequences / num_tokens)
        bucket.left -= 1
        if bucket.left > 0:
            return False
        if bucket.is_trying:
            return self._judge(bucket)
        other = not bucket.guesses
        bucket.ways[other].num_steps = 0  # what was long ago counts for nothing
        self._use(bucket, other, steps=_TRIAL, is_trying=True)
        return False

    def _judge(self, bucket: _Bucket) -> bool:
        """At the end of a trial."""
        if not bucket.ways[not bucket.guesses].num_steps:
            self._use(bucket, not bucket.guesses, steps=_TRIAL, is_trying=True)  # it has never been tried
            return False
        before, other = bucket.best, not bucket.best
        if bucket.ways[other].seconds * _MARGIN < bucket.ways[before].seconds:
            bucket.best, bucket.pause = other, 0
        self._rest(bucket)
        return bucket.best != before

    def _rest(self, bucket: _Bucket) -> None:
        """Uses the best way until the next trial."""
        bucket.pause = min(max(2 * bucket.pause, _MIN_PAUSE), _MAX_PAUSE)
        self._use(bucket, bucket.best, steps=bucket.pause, is_trying=False)

    @staticmethod
    def _use(bucket: _Bucket, guesses: bool, *, steps: int, is_trying: bool) -> None:
        bucket.left_out = _LEFT_OUT if guesses != bucket.guesses else 0
        bucket.guesses, bucket.left, bucket.is_trying = guesses, steps, is_trying
        bucket.num_asked = 0
