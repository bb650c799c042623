"""One ``sixfold serve`` as a child process: started, watched, drained, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from sixfold.core.config_overrides import SERVER_VARIABLE
from sixfold.core.errors import SixfoldError

_READY_MARK = " on http://"
_LOG_BYTES = 8192
_READ_BYTES = 4096
_LINGER_S = 2.0
"""Workers hold the pipes of a server that has ended; this long their last words are waited for."""


class ServerFailed(SixfoldError):
    """A server did not come up, or has ended by itself; the end of its log is in the message."""


class _Pipe:
    """What a child writes. Unlike a pipe that asyncio makes for it, this one keeps nobody waiting for the child's end while
    grandchildren hold it, and can be closed then."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        self._transport: asyncio.BaseTransport | None = None
        self.stream = asyncio.StreamReader()

    async def __aenter__(self) -> int:
        """The descriptor for the child, until it has been started."""
        protocol = asyncio.StreamReaderProtocol(self.stream)
        file = os.fdopen(self._read_fd, "rb", buffering=0)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, file)
        return self._write_fd

    async def __aexit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        os.close(self._write_fd)
        if kind is not None:
            self.close()

    def close(self) -> None:
        """Whoever writes yet is told that nobody reads."""
        if self._transport is not None:
            self._transport.close()


class ServerProcess:
    """A server with a configuration of its own. Use within one event loop.

    The child holds a pipe to this process: when this one dies, however it does, the child stops at once, because whoever
    counted its accelerator as taken does so no more.

    Args:
        config: The text of its configuration file, YAML or JSON; ``server.port`` should be 0. Variables that set fields of
            ``server`` are kept from the child: they are meant for who listens to clients.
        variables: Further variables that the configuration may name.
    """

    def __init__(self, config: str, *, variables: Mapping[str, str] = MappingProxyType({})) -> None:
        self._config = config
        self._variables = variables
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._log = b""
        self._pipes: tuple[_Pipe, ...] = ()
        self._readers: list[asyncio.Task[None]] = []
        self.url = ""
        """Where it answers, without a trailing slash; once `start` has returned."""

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        assert self._process is not None, "it was started"
        return self._process.pid

    @property
    def log(self) -> str:
        """The end of what it wrote to standard error."""
        return self._log.decode(errors="replace")

    async def start(self, timeout_s: float) -> str:
        """Returns the URL once every model is up.

        Raises:
            ServerFailed: It ended before, or took longer than ``timeout_s``.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="sixfold-replica-")
        path = Path(self._folder.name) / "config.yaml"
        path.write_text(self._config)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(SERVER_VARIABLE)}
        output, log = self._pipes = _Pipe(), _Pipe()
        async with output as stdout, log as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sixfold.core.cli", "serve", str(path), "--stop-on-eof"),
                stdin=asyncio.subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                env={**kept, **self._variables},
            )
        self._readers.append(asyncio.create_task(self._keep_log(log.stream)))
        try:
            async with asyncio.timeout(timeout_s):
                first = (await output.stream.readline()).decode(errors="replace")
        except TimeoutError:
            await self.kill()
            raise ServerFailed(f"The server was not up after {timeout_s:g} s:\n{self.log}") from None
        if _READY_MARK not in first:
            await self.kill()
            raise ServerFailed(f"The server did not start:\n{self.log}")
        self._readers.append(asyncio.create_task(_discard(output.stream)))
        self.url = first.rsplit(" on ", 1)[1].strip()
        return self.url

    async def stop(self, grace_s: float) -> int:
        """Lets running requests end (the server's own ``drain_timeout_s`` bounds that) and returns the exit status.

        Args:
            grace_s: After which it is killed.
        """
        assert self._process is not None, "it was started"
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            await self.kill()
        await self._clean_up()
        return await self._process.wait()

    async def kill(self) -> None:
        """Ends it at once; its workers see that and end, too."""
        assert self._process is not None, "it was started"
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._clean_up()

    async def _clean_up(self) -> None:
        if self._readers:
            await asyncio.wait(self._readers, timeout=_LINGER_S)
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for pipe in self._pipes:
            pipe.close()
        if self._folder is not None:
            self._folder.cleanup()

    async def _keep_log(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(_READ_BYTES):
            self._log = (self._log + data)[-_LOG_BYTES:]
            # A full disk must not end the reading: the server would wait for room in the pipe.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(data.decode(errors="replace"))
                sys.stderr.flush()


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(_READ_BYTES):
        pass
