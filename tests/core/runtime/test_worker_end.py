"""A worker whose serving process is gone takes with it all that an engine has started."""

from __future__ import annotations

import select
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from sixfold.core.runtime import wire
from sixfold.core.runtime.worker_process import start_process


@pytest.mark.parametrize("leaves_unread", [False, True])
async def test_all_of_its_group_ends_with_the_serving_process(count_plugin: Path, leaves_unread: bool) -> None:
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
        ours.sendall(wire.frame(msgspec.msgpack.encode(load)))
        assert select.select([ours], [], [], 120)[0]  # "ready" came
        if leaves_unread:
            ours.close()
        else:
            ours.shutdown(socket.SHUT_WR)
        assert await process.wait() == -signal.SIGKILL
