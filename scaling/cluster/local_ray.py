"""A Ray of this machine alone, for as long as this process lives: nothing to install beside the extra, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

import httpx

from sixfold.core.config_overrides import SERVER_VARIABLE
from sixfold.core.errors import SixfoldError

_START_TIMEOUT_S = 120.0
_POLL_S = 0.2
_STOP_TIMEOUT_S = 40.0
_LOG_TAIL = 4000
_OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""The least that Ray takes: no object of ours passes through it."""


class RayFailed(SixfoldError):
    """The local Ray did not start; the end of what it wrote is in the message."""


class LocalRay:
    """One Ray head in processes of its own. Use within one event loop."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.head_url = ""
        """Of its dashboard, without a trailing slash; once `start` has returned."""

    @property
    def is_running(self) -> bool:
        """Whether it lives."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Returns when its head takes orders.

        Raises:
            RayFailed: It ended, or was not up in time.
        """
        # Ray makes sockets below it, whose paths may have 107 characters: not below a long TMPDIR.
        self._folder = Path(tempfile.mkdtemp(prefix="sixfold-ray-", dir="/tmp"))
        dashboard, client = _free_ports(2)
        url = f"http://127.0.0.1:{dashboard}"
        arguments = (
            *("--node-ip-address", "127.0.0.1", "--port", "0", "--ray-client-server-port", str(client)),
            *(
                "--dashboard-host",
                "127.0.0.1",
                "--dashboard-port",
                str(dashboard),
                "--dashboard-agent-listen-port",
                "0",
            ),
            *("--object-store-memory", str(_OBJECT_STORE_BYTES), "--disable-usage-stats"),
            *("--temp-dir", str(self._folder / "ray")),
        )
        with (self._folder / "start.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sixfold.scaling.cluster.ray_keeper", *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for this process, which drains first
            )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._answers(url)
        except TimeoutError:
            raise RayFailed(f"Ray was not up after {_START_TIMEOUT_S:g} s:\n{self._log()}") from None
        self.head_url = url

    async def stop(self) -> None:
        """Ends it and everything that it started. Harmless when it was never started."""
        if self._process is not None:
            await self._end(self._process)
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def _end(self, keeper: asyncio.subprocess.Process) -> None:
        if keeper.returncode is None:
            assert keeper.stdin is not None
            keeper.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await keeper.wait()
        # A keeper that was killed has left its group behind. Ray's workers have groups of their own, and end with the raylet.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(keeper.pid, signal.SIGKILL)
        await keeper.wait()

    async def _answers(self, url: str) -> None:
        assert self._process is not None
        async with httpx.AsyncClient(base_url=url, timeout=5.0, trust_env=False) as http:
            while True:
                if self._process.returncode is not None:
                    raise RayFailed(f"Ray did not start:\n{self._log()}")
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get("/api/serve/applications/")).is_success:
                        return
                await asyncio.sleep(_POLL_S)

    def _log(self) -> str:
        assert self._folder is not None
        return (self._folder / "start.log").read_text(errors="replace")[-_LOG_TAIL:]


def _environment() -> dict[str, str]:
    """What Ray's processes see: without what configures the server in front."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SERVER_VARIABLE)}
    return {**kept, "RAY_USAGE_STATS_ENABLED": "0"}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
