"""Servers as child processes: up, drained, and gone with whoever started them."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sixfold.scaling.cluster.server_process import ServerFailed, ServerProcess
from tests.plugins.llm.conftest import write_model

_WAIT_S = 120.0

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


async def test_a_server_is_ended_though_something_of_it_still_holds_its_pipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lingering = tmp_path / "python"
    lingering.write_text('#!/bin/sh\nsleep 600 &\necho $! > "$0.pid"\necho not yet\nexec sleep 600\n')
    lingering.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(lingering))
    server = ServerProcess("{}")
    try:
        async with asyncio.timeout(_WAIT_S / 2):
            with pytest.raises(ServerFailed, match="did not start"):  # its first line is not that it is ready
                await server.start(_WAIT_S)
    finally:
        os.kill(int(lingering.with_suffix(".pid").read_text()), signal.SIGKILL)
    assert not server.is_running


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
