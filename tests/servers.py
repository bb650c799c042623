"""Real servers, started as a user starts them: one process from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 60.0
_DUMP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoServer:
    """A running server.

    Attributes:
        url: Without a trailing slash.
        config: The file that it watches.
        process: Its main process.
    """

    url: str
    config: Path
    process: subprocess.Popen[str]

    @property
    def log(self) -> str:
        """What it wrote to standard error."""
        return (self.config.parent / "server.log").read_text(errors="replace")

    def dump_threads(self) -> None:
        """Makes the workers write to the log where their threads are; a moment later it is there."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children:  # one after the other: they write without knowing of each other
            seen = self.log.count("Current thread")  # the last one that is written
            os.kill(int(pid), signal.SIGUSR1)
            until_s = time.monotonic() + _DUMP_TIMEOUT_S
            while self.log.count("Current thread") == seen and time.monotonic() < until_s:
                time.sleep(0.1)


@contextmanager
def serving(folder: Path, models: Mapping[str, Any]) -> Iterator[DemoServer]:
    """A server of these models, on a free port and with its data in the folder; it must end with status 0."""
    config = folder / "models.yaml"
    config.write_text(yaml.safe_dump({"models": models, "server": {"port": 0, "data_dir": str(folder / "data")}}))
    server = start_server(config)
    try:
        yield server
    finally:
        assert stop_server(server) == 0


RUNNING: list[DemoServer] = []
"""All that were started and not stopped."""


def start_server(
    config: Path,
    env: Mapping[str, str] | None = None,
    *,
    timeout_s: float = _START_TIMEOUT_S,
    command: str = "serve",
    options: Sequence[str] = (),
) -> DemoServer:
    """Starts ``sixfold serve`` (or ``gateway``) and returns when it has said that its models are up."""
    with (config.parent / "server.log").open("w") as log_file:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "sixfold"), command, str(config), *options],
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            env={**(env or os.environ), "HF_HUB_OFFLINE": "1"},
        )
    # The timer ends a process that never becomes ready, and with it the reading of its output.
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        log = (config.parent / "server.log").read_text()
        assert " on http://" in first, f"the server did not start:\n{log}"
    except BaseException:
        process.kill()
        process.communicate()
        raise
    finally:
        timer.cancel()
    server = DemoServer(url=first.rsplit(" on ", 1)[1].strip(), config=config, process=process)
    RUNNING.append(server)
    return server


def stop_server(server: DemoServer) -> int:
    """Sends SIGTERM and returns the exit status; one that does not end is killed, workers and all."""
    RUNNING.remove(server)
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
    try:
        status = server.process.wait(timeout=_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.process.kill()  # its workers see the closed channel and end
        status = server.process.wait()
    assert server.process.stdout is not None
    server.process.stdout.close()
    return status


def ranks_of(server: DemoServer) -> list[int]:
    """Process ids of the ranks that a server's workers have started."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                grandparent = int(Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError):
                continue
            if b"sixfold.core.runtime.rank" in command and grandparent == server.process.pid:
                found.append(int(entry.name))
    return found
