"""Starts a server as a process group on a free port of this machine, waits for it, pauses it, ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_TIMEOUT_S = 420.0  # vLLM imports and warms up for minutes
STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server to measure.

    Attributes:
        name: Short, unique; names the log.
        command: Makes the command line for a port.
        env: Added to this process's environment.
        ready_path: Answers 200 when the model is loaded.
        pausable: Whether it may be stopped by a signal while others are measured. Sixfold is not: it watches its
            workers' heartbeats, so its idle cost counts against the peers' rows, and the report shows it.
    """

    name: str
    command: Callable[[int], list[str]]
    env: Mapping[str, str] = field(default_factory=dict)
    ready_path: str
    pausable: bool = True


class RunningServer:
    """A started `Target`; a context manager that ends it with everything it started."""

    def __init__(self, target: Target, log_folder: Path) -> None:
        self.target = target
        self.port = _free_port()
        self._log_path = log_folder / f"{target.name}.log"
        log_folder.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                target.command(self.port),
                env={**os.environ, **target.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, which ends as one
            )

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def wait_ready(self) -> float:
        """Returns the seconds it took.

        Raises:
            RuntimeError: It ended or did not become ready; the message holds the end of its log.
        """
        started_s = time.monotonic()
        url = f"http://127.0.0.1:{self.port}{self.target.ready_path}"
        while time.monotonic() - started_s < START_TIMEOUT_S:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(url, timeout=5) as response:
                    if response.status == 200:
                        return time.monotonic() - started_s
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.2)
        log_end = self._log_path.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{self.target.name} did not become ready ({self._log_path}):\n{log_end}")

    def pause(self) -> None:
        """Takes its processes off the cores until `resume`."""
        if self.target.pausable:
            os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undoes `pause`."""
        if self.target.pausable:
            os.killpg(self._process.pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        """Processor seconds of the process and its descendants so far."""
        root = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))

    def stop(self) -> None:
        """Ends the whole group: politely, then by force."""
        self._signal_group(signal.SIGCONT)
        self._signal_group(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        self._signal_group(signal.SIGKILL)
        self._process.wait()

    def _signal_group(self, signum: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, signum)
        except ProcessLookupError:
            pass


_MAX_OTHER_LOAD = 0.1


class OtherLoad:
    """How much of the cores went to neither a server nor this process while a measurement ran.

    Ratios of a measurement with other load say little: torch's thread barriers wait for the core that another has.
    """

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._before = self._times()

    def share(self) -> float:
        """Of all cores together since this object was made; 0.5 on two cores is one core."""
        all_s, busy_s, ours_s = (now - before for now, before in zip(self._times(), self._before, strict=True))
        return max(0.0, busy_s - ours_s) / all_s

    def _times(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        idle_s = times.idle + times.iowait
        guest_s = times.guest + times.guest_nice  # counted in user and nice already
        mine = psutil.Process().cpu_times()
        all_s = sum(times) - guest_s
        return all_s, all_s - idle_s, self._server.cpu_s() + mine.user + mine.system


async def undisturbed(
    server: RunningServer, measurements: Sequence[Callable[[], Awaitable[dict[str, float]]]]
) -> dict[str, float]:
    """The first measurement beside which others used at most a tenth of the cores, or else the least disturbed one.

    What was measured has no say in it. ``other_load`` and the number of ``tries`` are added to the values.
    """
    found: list[dict[str, float]] = []
    for measure in measurements:
        other = OtherLoad(server)
        found.append(await measure())
        found[-1]["other_load"] = other.share()
        if found[-1]["other_load"] <= _MAX_OTHER_LOAD:
            break
    return min(found, key=lambda values: values["other_load"]) | {"tries": len(found)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
