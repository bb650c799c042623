"""Servers as child processes: up, drained, and gone with whoever started them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sixfold.scaling.cluster.server_process import ServerFailed, ServerProcess
from tests.plugins.llm.conftest import write_model

_WAIT_S = 120.0
_FAULT_WAIT_S = 30.0

_OWNER = """
import asyncio, sys
from sixfold.scaling.cluster.server_process import ServerProcess

async def main():
    server = ServerProcess(sys.stdin.read())
    url = await server.start(120.0)
    print(url, server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

_LINGERS = """#!/bin/sh
sleep 600 &
echo $! > "$0.worker"
echo "up on http://127.0.0.1:1"
exec sleep 600
"""

_TALKS = """#!/bin/sh
head -c 1000000 /dev/zero >&2
echo "up on http://127.0.0.1:1"
exec sleep 600
"""


class FullDisk(io.StringIO):
    """Standard error in a file on a full disk."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What runs in place of Python, once that the test has written it; its worker is ended after the test."""
    path = tmp_path / "program"
    path.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    yield path
    worker = path.with_name("program.worker")
    if worker.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(worker.read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    source = write_model(tmp_path_factory.mktemp("model"), "llama-long")
    options = {"dtype": "float32", "kv_cache_bytes": 4 << 20}
    models = {"tiny": {"source": f"file:{source}", "options": options}}
    return json.dumps({"models": models, "server": {"host": "127.0.0.1", "port": 0}})


async def test_a_server_ends_the_streams_that_run_when_it_is_stopped(config: str) -> None:
    server = ServerProcess(config)
    url = await server.start(_WAIT_S)
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1500, "ignore_eos": True, "stream": True, "temperature": 0}
    async with (
        httpx.AsyncClient(timeout=_WAIT_S) as http,
        http.stream("POST", f"{url}/v1/completions", json=body) as stream,
    ):
        lines = stream.aiter_lines()
        await anext(lines)
        stopping = asyncio.create_task(server.stop(_WAIT_S))
        assert [line async for line in lines if line][-1] == "data: [DONE]"
    assert await stopping == 0
    assert not server.is_running


async def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(ServerFailed, match="no-such-folder"):
        await ServerProcess(json.dumps({"models": {"tiny": {"source": "file:/no-such-folder"}}})).start(_WAIT_S)


async def test_a_server_that_takes_too_long_is_ended(config: str) -> None:
    server = ServerProcess(config)
    with pytest.raises(ServerFailed, match=r"not up after 0\.01 s"):
        await server.start(0.01)
    assert not server.is_running


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_who_ends_a_server_does_not_wait_for_a_worker_that_lingers(program: Path, end: str) -> None:
    program.write_text(_LINGERS)
    server = ServerProcess("{}")
    await server.start(_FAULT_WAIT_S)
    async with asyncio.timeout(_FAULT_WAIT_S):
        await (server.kill() if end == "kill" else server.stop(_FAULT_WAIT_S))
    assert not server.is_running
    os.kill(int(program.with_name("program.worker").read_text()), 0)  # it does linger


async def test_a_server_whose_words_find_no_room_on_the_disk_goes_on(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write_text(_TALKS)
    monkeypatch.setattr(sys, "stderr", FullDisk())
    server = ServerProcess("{}")
    assert await server.start(_FAULT_WAIT_S) == "http://127.0.0.1:1"
    await server.kill()
    assert len(server.log) == 8192


def test_a_server_does_not_outlive_its_owner(config: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        owner.stdin.write(config.encode())
        owner.stdin.close()
        url, pid = owner.stdout.readline().split()
        assert httpx.get(url.decode() + "/ready").status_code == 200
        server = os.pidfd_open(int(pid))
        owner.send_signal(signal.SIGKILL)
    try:
        assert _ends(server), "the server lives on without its owner"
    finally:
        os.close(server)


def _ends(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], _WAIT_S)[0])
