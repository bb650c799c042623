"""The process of a worker: how it is started, and how one that hangs is ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

from sixfold.core.runtime import wire
from sixfold.core.runtime.interpreter import Interpreter, clean_environ
from sixfold.core.telemetry.logs import log_format

_STDERR_FD = 2
_TELL_S = 1.0
"""So long a worker that hangs has to say where its threads are."""


async def start_process(load: wire.Load, fd: int, interpreter: Interpreter | None) -> asyncio.subprocess.Process:
    """Starts a worker that has loaded nothing yet.

    Args:
        load: What it will be told.
        fd: Its end of the socket.
        interpreter: The Python to run; None for this process's own.

    Raises:
        OSError: The Python can't be run.
    """
    # Threads of a step that wait spin for some 30 us (the gap to the next kernel), then sleep. The default spins for
    # milliseconds and starves the serving process and the pools; not spinning at all costs a wake-up per kernel:
    # 82 against 50 ms for a decode step of 24 rows of a 135M model on two cores.
    env = {**os.environ} if interpreter is None else clean_environ() | {"PYTHONPATH": str(interpreter.import_path)}
    env |= {
        "OMP_NUM_THREADS": str(load.num_threads),
        "NUMBA_NUM_THREADS": str(load.num_threads),
        "GOMP_SPINCOUNT": "10000",
        "GLOO_SOCKET_IFNAME": "lo",  # ranks of a replica are on one host, and nobody else shall reach them
        "NCCL_SOCKET_IFNAME": "lo",
        "TQDM_DISABLE": "1",  # libraries' own bars would tear the one that the serving process shows
    }
    return await asyncio.create_subprocess_exec(
        python_of(interpreter),
        "-m",
        "sixfold.core.runtime.worker",
        str(fd),
        log_format(),
        pass_fds=(fd,),
        env=env,
        stdout=_STDERR_FD,  # what libraries print must not stand in the server's own output
    )


def python_of(interpreter: Interpreter | None) -> str:
    """The path of the Python that runs a worker."""
    return sys.executable if interpreter is None else str(interpreter.python)


async def end_hanging(process: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> None:
    """Lets a worker say where each of its threads is, as far as it still can, and kills it.

    Its socket must be open until then: a worker that finds it closed ends at once.

    Args:
        process: The worker.
        ended: Done with its end.
    """
    with contextlib.suppress(ProcessLookupError):  # it ended by itself
        process.send_signal(signal.SIGUSR1)
        await asyncio.wait((ended,), timeout=_TELL_S)
        process.kill()
