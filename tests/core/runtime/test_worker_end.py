"""A worker whose serving process is gone takes with it all that an engine has started."""

from __future__ import annotations

import importlib
import select
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from sixfold.core.runtime import wire
from sixfold.core.runtime.worker_process import start_process

WAIT_S = 120.0


@pytest.mark.parametrize("how", ["at rest", "with answers unread", "while it drains"])
async def test_all_of_its_group_ends_with_the_serving_process(count_plugin: Path, how: str) -> None:
    """Left unread, what the worker has sent makes the end of the channel a reset, as a loaded server's is."""
    load = wire.Load(
        model_name="counter",
        family="count/aloud",
        path=str(count_plugin),
        device="cpu",
        num_threads=1,
        num_pool_threads=1,
        options={},
    )
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = await start_process(load, theirs.fileno(), None)
        send(ours, load)
        await_ready(ours)
        endless = importlib.import_module("sixfold_count").CountInput(1, "forever")
        if how != "at rest":
            send(ours, wire.Submit(1, "r", "", 1.0, 0, None, msgspec.Raw(msgspec.msgpack.encode(endless))))
        if how == "while it drains":
            send(ours, wire.Drain(60.0))
        if how == "with answers unread":
            assert select.select([ours], [], [], WAIT_S)[0]
            ours.close()
        else:
            ours.shutdown(socket.SHUT_WR)
        assert await process.wait() == -signal.SIGKILL


def send(sock: socket.socket, message: wire.ToWorker) -> None:
    sock.sendall(wire.frame(msgspec.msgpack.encode(message)))


def await_ready(sock: socket.socket) -> None:
    reader, decoder = wire.FrameReader(), msgspec.msgpack.Decoder(wire.FromWorker)
    sock.settimeout(WAIT_S)
    while True:
        if any(isinstance(decoder.decode(payload), wire.Ready) for payload in reader.feed(sock.recv(1 << 16))):
            return
