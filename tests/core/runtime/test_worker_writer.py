from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import msgspec
import pytest

from sixfold.core.runtime import wire
from sixfold.core.runtime.worker_writer import Writer

_READY = wire.Ready(max_model_len=None, parameters=None, memory_bytes=None, details={})


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(10.0)
    with ours, theirs:
        yield ours, theirs


def received(ours: socket.socket) -> Iterator[object]:
    reader, decoder = wire.FrameReader(), msgspec.msgpack.Decoder(wire.FromWorker)
    while data := ours.recv(1 << 16):
        for payload in reader.feed(data):
            yield decoder.decode(payload)


def test_a_writer_that_can_not_go_on_ends_the_channel(ends: tuple[socket.socket, socket.socket]) -> None:
    """Else the serving process would wait for answers that never come."""
    ours, theirs = ends
    writer = Writer(theirs)

    def stats() -> wire.Stats:
        raise OverflowError("int too large to convert to float")

    writer.stats = stats
    assert list(received(ours)) == []
    writer.close()


def test_who_is_told_that_a_model_is_ready_has_its_figures(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    writer = Writer(theirs)
    told = received(ours)
    numbers = itertools.count(1)
    writer.stats = lambda: wire.Stats(metrics={"looks": float(next(numbers))})
    first = next(told)  # less than the time between two figures ago when the model is ready
    writer.put(_READY)
    writer.put(wire.Drained())
    writer.close()
    theirs.close()
    before = [first, *itertools.takewhile(lambda message: message != _READY, told)]
    assert len(before) > 1
    assert before[-1] == wire.Stats(metrics={"looks": float(len(before))})
