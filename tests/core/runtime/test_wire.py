"""Frames on the socket to a worker: cut anywhere, large or small, and large ones without copies."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.runtime import large_bytes, wire
from sixfold.core.runtime.large_bytes import LARGE_BYTES, encode_pieces


class Clip(msgspec.Struct, frozen=True):
    name: str
    data: bytes


class ClipInput(msgspec.Struct, frozen=True, tag="clips", omit_defaults=True):
    clips: tuple[Clip, ...]
    mask: bytes | None = None
    numbers: tuple[int, ...] = ()
    options: dict[str, float] = {}


ENCODER = msgspec.msgpack.Encoder()


def submit(given_input: msgspec.Struct) -> wire.SubmitStruct:
    return wire.SubmitStruct(7, "r", "t", 1.5, 1, None, given_input)


@pytest.mark.parametrize("sizes", [(), (0,), (LARGE_BYTES - 1,), (LARGE_BYTES, 3, LARGE_BYTES + 5), (LARGE_BYTES,) * 3])
def test_pieces_are_the_usual_encoding_and_the_worker_reads_a_submit(sizes: tuple[int, ...]) -> None:
    clips = tuple(Clip(f"{number}", bytes([number]) * size) for number, size in enumerate(sizes))
    message = submit(ClipInput(clips, b"m" * LARGE_BYTES if len(sizes) == 3 else None, (1, 2), {"x": 0.5}))
    pieces = encode_pieces(ENCODER, message)
    assert b"".join(pieces) == ENCODER.encode(message)
    read = msgspec.msgpack.decode(b"".join(pieces), type=wire.ToWorker)
    assert isinstance(read, wire.Submit)
    assert msgspec.msgpack.decode(read.input, type=ClipInput) == message.input


def test_large_bytes_are_not_copied() -> None:
    data = b"x" * LARGE_BYTES
    pieces = encode_pieces(ENCODER, submit(ClipInput((Clip("a", data),))))
    assert any(piece is data for piece in pieces)


def test_many_small_items_are_not_searched_through() -> None:
    searched = itertools.count()

    class Counted(tuple[int, ...]):
        def __getitem__(self, key: object) -> object:  # type: ignore[override]  # only slices are asked for
            next(searched)
            assert key == slice(None, 64)
            return tuple(range(64))

    assert not large_bytes._has_large(Counted(range(100_000)), 4)  # pyright: ignore[reportPrivateUsage]
    assert next(searched) == 1


@given(
    st.lists(st.sampled_from([0, 1, 5, 300, 1 << 20, (1 << 20) + 7]), max_size=5),
    st.lists(st.integers(0, 5 << 20), max_size=6),
)
def test_frames_arrive_whole_wherever_the_stream_is_cut(sizes: list[int], cuts: list[int]) -> None:
    payloads = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    stream = b"".join(map(wire.frame, payloads))
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = wire.FrameReader()
    read = [payload for start, end in itertools.pairwise(edges) for payload in reader.feed(stream[start:end])]
    assert [bytes(payload) for payload in read] == payloads


def test_a_stream_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="broken"):
        list(wire.FrameReader().feed(b"\xff\xff\xff\xff"))
