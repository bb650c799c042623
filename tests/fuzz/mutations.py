"""Inputs near good ones, for runs without a fuzzer that learns: the same seeds and words, changed by Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.target import Target

_MAX_CHANGES = 4


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Seeds with up to four changes: bytes cut out, doubled, replaced, or words put in."""
    pieces = st.one_of(st.binary(max_size=4), *([st.sampled_from(target.words)] if target.words else []))
    # (where, how many bytes go, what comes, how often): places as shares of the length, so that shrinking is simple
    changes = st.tuples(
        st.floats(0, 1), st.sampled_from([0, 0, 1, 2, 8, 64]), pieces, st.sampled_from([1, 1, 1, 2, 20])
    )

    def change(seed: bytes, wanted: list[tuple[float, int, bytes, int]]) -> bytes:
        return _changed(seed, wanted)[: target.max_bytes]

    return st.builds(
        change,
        st.sampled_from(target.seeds),
        st.lists(changes, max_size=_MAX_CHANGES),
    )


def _changed(data: bytes, changes: list[tuple[float, int, bytes, int]]) -> bytes:
    for share, num_gone, piece, times in changes:
        at = int(share * len(data))
        data = data[:at] + piece * times + data[at + num_gone :]
    return data
