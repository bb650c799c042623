"""A Ray of this machine ends with everything in it, however its keeper came to its end; the real one is in tests/scaling/up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
from pathlib import Path

import pytest

from sixfold.scaling.cluster.local_ray import LocalRay

_WAIT_S = 30.0

_KEEPER = """#!{python}
import os, subprocess, sys
from pathlib import Path

port = sys.argv[sys.argv.index("--dashboard-port") + 1]
head = subprocess.Popen([{python!r}, {head!r}, port])
here = Path(sys.argv[0])
here.with_name("pids").write_text(f"{{os.getpid()}} {{head.pid}}")
head.wait()
"""

_HEAD = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the keeper, which runs in place of Python, writes its number and that of its head."""
    head, keeper = tmp_path / "head.py", tmp_path / "keeper"
    head.write_text(_HEAD)
    keeper.write_text(_KEEPER.format(python=sys.executable, head=str(head)))
    keeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(keeper))
    return tmp_path / "pids"


async def test_what_a_killed_keeper_left_behind_is_ended(pids: Path) -> None:
    ray = LocalRay()
    await ray.start()
    keeper, head = map(int, pids.read_text().split())
    held = os.pidfd_open(head)
    try:
        os.kill(keeper, signal.SIGKILL)
        async with asyncio.timeout(_WAIT_S):
            while ray.is_running:
                await asyncio.sleep(0)
            await ray.stop()
        assert select.select([held], [], [], _WAIT_S)[0], "the head lives on without its keeper"
        await ray.stop()  # harmless
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(held, signal.SIGKILL)
        os.close(held)
