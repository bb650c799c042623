"""Embeds the texts of a step on several CPU threads, each of which runs a part by itself.

The other way is to run all texts in one batch whose products use all threads. These threads wait for each other at every
product, so whatever takes a core for a moment (the serving process above all) stops them all. With 64 requests in flight
over HTTP on two cores, parts of their own gave 9% more texts a second in both types; alone on the machine both ways are
equal (73% of the floor in bfloat16).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import torch
from numpy.typing import NDArray

from sixfold.plugins.embedding.encoder import Encoder
from sixfold.plugins.embedding.packing import TokenIds

# Below this the products of a part get too thin.
_MIN_PART_TOKENS = 512
# Parts may differ by so much before the longest costs more than the waiting would.
_MAX_IMBALANCE = 1.1


def deal(lengths: Sequence[int], num_parts: int) -> list[list[int]]:
    """Shares texts out so that all parts have about as many tokens: the longest first, each to the least loaded part.

    Source: Graham 1969.

    Args:
        lengths: Tokens of each text.
        num_parts: How many parts; some stay empty if there are fewer texts.

    Returns:
        Indices of the texts, by part.
    """
    loads = [(0, part) for part in range(num_parts)]
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        load, part = heapq.heappop(loads)
        parts[part].append(index)
        heapq.heappush(loads, (load + lengths[index], part))
    return parts


class SideBySide:
    """Embeds with an encoder, in parts where that pays. Used by one thread; its own threads live until `close`.

    Args:
        encoder: Whose forward may run in several threads at once.
        num_threads: CPU threads in all.
    """

    def __init__(self, encoder: Encoder, num_threads: int) -> None:
        self._encoder = encoder
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="embed")

    def embed(self, sequences: Sequence[TokenIds], num_prompt_tokens: Sequence[int]) -> NDArray[np.float32]:
        """As `Encoder.embed`."""
        lengths = [len(sequence) for sequence in sequences]
        num_parts = min(self._num_threads, sum(lengths) // _MIN_PART_TOKENS, len(sequences))
        if num_parts < 2:
            return self._encoder.embed(sequences, num_prompt_tokens)
        parts = deal(lengths, num_parts)
        largest = max(sum(lengths[index] for index in part) for part in parts)
        if largest * num_parts > _MAX_IMBALANCE * sum(lengths):
            return self._encoder.embed(sequences, num_prompt_tokens)
        threads = self._num_threads // num_parts

        def embed_part(part: list[int]) -> NDArray[np.float32]:
            torch.set_num_threads(threads)  # each thread has its own setting
            return self._encoder.embed([sequences[i] for i in part], [num_prompt_tokens[i] for i in part])

        running = [self._pool.submit(embed_part, part) for part in parts]
        wait(running)  # also when one fails: no part may run on beside the next step
        found = [each.result() for each in running]
        vectors = np.empty((len(sequences), found[0].shape[1]), dtype=np.float32)
        for part, own in zip(parts, found, strict=True):
            vectors[part] = own
        return vectors

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()
