"""Servers and gateways as a user starts them, what they say of themselves, and an end to every wait; part of multi.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 150.0
ASK_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0
_MAIN = "from sixfold.core.cli import main; raise SystemExit(main())"


class Server:
    """``sixfold serve`` or ``sixfold gateway``; starts at once, `wait` says when it is up.

    Args:
        name: Of its files.
        config: Its configuration, but for host and port.
        folder: For its files.
        command: Of ``sixfold``.
        devices: Numbers of the GPUs that it sees; None for all.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        folder: Path,
        *,
        command: str = "serve",
        devices: Sequence[int] | None = None,
    ) -> None:
        own = folder / name
        own.mkdir(parents=True)
        self.name = name
        self.url = ""
        self._log = own / "log"
        data = {"data_dir": str(own / "data")} if command == "serve" else {}
        server = {"host": "127.0.0.1", "port": 0, **data}
        (own / "config.yaml").write_text(json.dumps({**config, "server": server}))
        seen = {} if devices is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, command, str(own / "config.yaml")],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **seen, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
            )

    @property
    def log(self) -> str:
        """What it wrote to standard error."""
        return self._log.read_text(errors="replace")

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rsplit(":", 1)[1])

    def wait(self) -> Server:
        """Returns when it has said that it is up.

        Raises:
            RuntimeError: It ended, or it took too long.
        """
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.start()
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        timer.cancel()
        if " on http://" not in first:
            self.stop()
            raise RuntimeError(f"{self.name} did not start:\n{self.log[-3000:]}")
        self.url = first.rsplit(" on ", 1)[1].strip()
        return self

    def stop(self) -> None:
        """Ends it, by force if need be."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()  # its workers see the closed channel and end
            self.process.wait()

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer's JSON.

        Raises:
            RuntimeError: It is no 200; with what it says.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=ASK_TIMEOUT_S) as answer:
                found: dict[str, Any] = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{self.name} answered {error.code}: {error.read()[:500]!r}") from error
        return found

    def read(self, path: str) -> bytes:
        """The answer as it is."""
        with urllib.request.urlopen(self.url + path, timeout=ASK_TIMEOUT_S) as answer:
            found: bytes = answer.read()
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all that have these labels."""
        total = 0.0
        for line in self.read("/metrics").decode().splitlines():
            told = line.startswith((f"sixfold:{name}{{", f"sixfold:{name} "))
            if told and all(f'{label}="{value}"' in line for label, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


@contextlib.contextmanager
def running(servers: Sequence[Server]) -> Generator[None]:
    """All of them are up inside."""
    try:
        for server in servers:
            server.wait()
        yield
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                server.process.send_signal(signal.SIGTERM)
        for server in servers:
            server.stop()


def until(is_true: Callable[[], bool], what: str, timeout_s: float, pause_s: float = 0.02) -> float:
    """Waits for a condition; returns the seconds.

    Raises:
        TimeoutError: It did not come.
    """
    began_s = time.perf_counter()
    while not is_true():
        if time.perf_counter() - began_s > timeout_s:
            raise TimeoutError(f"{what} took longer than {timeout_s:g} s")
        time.sleep(pause_s)
    return time.perf_counter() - began_s
