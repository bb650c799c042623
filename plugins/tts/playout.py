"""Gives out the sentences of a request in their order, though they are computed in any order."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a sequence stands in its request: in which sentence, and as which part of it."""

    sentence: int
    part: int


class Playout:
    """The sound of one request that waits for what comes before it.

    Owner: the device thread. Only `skip` comes from a pool thread: for a sentence that has nothing to say, before any later
    sentence is prepared.

    Args:
        arrived_s: When the request came, on the model's clock.
        num_sentences: Of the whole request, the skipped ones included.

    Attributes:
        num_samples: Given out so far.
    """

    __slots__ = ("_last", "_lock", "_next", "_num_sentences", "_ready", "_skipped", "arrived_s", "num_samples")

    def __init__(self, arrived_s: float, num_sentences: int) -> None:
        self._next = Place(0, 0)
        self._ready: dict[Place, tuple[bytes, bool]] = {}
        self._skipped: set[int] = set()
        self._lock = threading.Lock()
        self._num_sentences = num_sentences
        self.arrived_s = arrived_s
        self.num_samples = 0

    def skip(self, sentence: int) -> None:
        """Nothing will come for this sentence. [pool]"""
        with self._lock:
            self._skipped.add(sentence)

    def put(self, place: Place, pcm: bytes, *, ends_sentence: bool) -> bytes:
        """Takes the sound of one sequence; returns all that may be given out now, often "" or more than it got. [device]"""
        self._ready[place] = (pcm, ends_sentence)
        found: list[bytes] = []
        while True:
            self._pass_skipped()
            part = self._ready.pop(self._next, None)
            if part is None:
                break
            found.append(part[0])
            at = self._next
            self._next = Place(at.sentence + 1, 0) if part[1] else Place(at.sentence, at.part + 1)
        sound = b"".join(found)
        self.num_samples += len(sound) // 2
        return sound

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow. [device]

        Skips that a pool thread has not told yet count as something to come: a request whose last sentences say nothing is
        complete without ever being called so.
        """
        self._pass_skipped()
        return self._next.sentence >= self._num_sentences

    def _pass_skipped(self) -> None:
        with self._lock:
            while self._next.part == 0 and self._next.sentence in self._skipped:
                self._next = Place(self._next.sentence + 1, 0)
