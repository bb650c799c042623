"""Runs a server in this process from its first socket to its last answer: listening, signals, draining."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

import uvicorn

from sixfold.core.errors import UsageError
from sixfold.core.serving.drain import Drain
from sixfold.core.serving.protocol import bounded_protocol
from sixfold.core.serving.settings import ServerSettings
from sixfold.core.serving.socket_protocol import socket_protocol

logger = logging.getLogger(__name__)

_ABORT_GRACE_S = 1.0
"""How long aborted requests may take to send their last frame."""
_CLOSE_GRACE_S = 2
"""How long connections may take to close once no request runs."""
_DISCARDED_BYTES = 4096


class Served(Protocol):
    """What can be served: a `SixfoldServer`, or a gateway before several.

    Attributes:
        settings: Of the HTTP side.
    """

    settings: ServerSettings

    @property
    def drain(self) -> Drain:
        """Who is running, and the way to end it."""
        ...

    @property
    def app(self) -> Any:
        """The ASGI application."""
        ...

    def lifespan(self, app: Any, /) -> AbstractAsyncContextManager[None]:
        """What must run beside the application; entered in the event loop that serves."""
        ...


class _UvicornServer(uvicorn.Server):
    """uvicorn without its signal handlers (`Lifecycle` has its own, which drain) and without polling for its end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Closes the listener and the idle connections, then the rest."""
        self.should_exit = True
        self._stop.set()

    async def main_loop(self) -> None:
        # uvicorn's own wakes ten times a second; this once, for the date header.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._stop.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server listens.

    Attributes:
        host: As configured.
        port: The real one, also if 0 was configured.
        lifecycle: The way to stop it, for programs that embed it.
    """

    host: str
    port: int
    lifecycle: Lifecycle

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "[::1]" if self.host == "::" else self.host
        return f"http://{host}:{self.port}"


class Lifecycle:
    """The stages of one running server. Belongs to the event loop that runs `serve`."""

    def __init__(self, server: Served, http: _UvicornServer) -> None:
        self._server = server
        self._http = http
        self._stopping: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.forced_by: int | None = None

    def drain(self) -> None:
        """Takes no new requests, lets the running ones end, then stops. Harmless when it was begun before."""
        if self._stopping is None:
            self._server.drain.begin()
            self._stopping = self._loop.create_task(self._drain_and_stop())

    def call_threadsafe(self, work: Callable[[], None]) -> None:
        """Runs something in the server's event loop, from any thread."""
        self._loop.call_soon_threadsafe(work)

    def drain_threadsafe(self) -> None:
        """`drain`, from any thread."""
        self.call_threadsafe(self.drain)

    def stop_now(self, signal_number: int | None = None) -> None:
        """Cuts off what still runs and stops."""
        self.forced_by = signal_number
        self._server.drain.begin()
        self._server.drain.abort_all()
        self._http.force_exit = True
        self._http.stop()
        for task in tuple(self._http.server_state.tasks):
            task.cancel()

    def on_signal(self, number: int) -> None:
        """SIGTERM and SIGINT: the first drains, the second stops at once."""
        if self._stopping is None:
            logger.warning(
                "%s: draining %d requests; once more to stop at once",
                signal.Signals(number).name,
                self._server.drain.num_running,
            )
            self.drain()
        else:
            self.stop_now(number)

    async def _drain_and_stop(self) -> None:
        drain = self._server.drain
        timeout_s = self._server.settings.drain_timeout_s
        if not await drain.wait_idle(timeout_s):
            logger.warning("%d requests still run after %g s: cancelled", drain.num_running, timeout_s)
            drain.abort_all()
            await drain.wait_idle(_ABORT_GRACE_S)
        self._http.stop()


async def serve(
    server: Served,
    *,
    models: AbstractAsyncContextManager[object] | None = None,
    on_reload: Callable[[], None] | None = None,
    on_listening: Callable[[Listening], None] | None = None,
    owner: TextIO | None = None,
) -> int:
    """Listens and answers until the server is told to stop; returns the exit status.

    Args:
        server: The application.
        models: Entered before the first request is taken and left after the last one was answered. Entering must not
            wait for models to load: ``/health`` and ``/ready`` answer meanwhile.
        on_reload: Called in the loop on SIGHUP, which changes nothing without it.
        on_listening: Called once the port takes connections.
        owner: A pipe to whoever started the server. Its end says that nobody counts this server's resources as taken any
            more: it stops at once.

    Raises:
        UsageError: The address cannot be listened on.
    """
    settings = server.settings
    listener = _listen(settings)
    http = _UvicornServer(_uvicorn_config(server))
    lifecycle = Lifecycle(server, http)
    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        stack.enter_context(_signals(lifecycle, on_reload))
        if owner is not None:
            stack.enter_context(_owned(lifecycle, owner))
        if models is not None:
            await stack.enter_async_context(models)
        await stack.enter_async_context(server.lifespan(server.app))
        # The listener's backlog already takes connections, so clients that come now wait and are not refused.
        if on_listening is not None:
            on_listening(Listening(settings.host, listener.getsockname()[1], lifecycle))
        await http.serve(sockets=[listener])
    return 0 if lifecycle.forced_by is None else 128 + lifecycle.forced_by


def run(
    server: Served,
    *,
    models: AbstractAsyncContextManager[object] | None = None,
    on_reload: Callable[[], None] | None = None,
    on_listening: Callable[[Listening], None] | None = None,
    owner: TextIO | None = None,
) -> int:
    """`serve` in a new event loop (uvloop where there is one); returns the process's exit status."""
    coroutine = serve(server, models=models, on_reload=on_reload, on_listening=on_listening, owner=owner)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(coroutine)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop, or asyncio's own loop on Windows."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def _listen(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family=family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"server: cannot listen on {settings.host} port {settings.port}: {error.strerror or error}. "
            "Choose another server.port, or stop the program that has it."
        ) from error
    listener.setblocking(False)
    return listener


def _uvicorn_config(server: Served) -> uvicorn.Config:
    settings = server.settings
    return uvicorn.Config(
        server.app,
        http=bounded_protocol(settings),
        ws=socket_protocol(settings),
        ws_max_size=settings.max_message_bytes,
        ws_per_message_deflate=False,  # what speech and images need it for is compressed already; and no zip bombs
        lifespan="off",  # `serve` enters the lifespan itself: an error in it reaches the terminal as it is
        log_config=None,
        access_log=False,  # uvicorn's lines hold query strings; `RequestRecord` has lines of its own
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=_CLOSE_GRACE_S,
    )


def nothing_to_reload() -> None:
    """Handles SIGHUP where there is nothing to read again."""
    logger.warning("SIGHUP: this process reads its configuration at its start alone; nothing changes")


@contextlib.contextmanager
def _signals(lifecycle: Lifecycle, on_reload: Callable[[], None] | None) -> Generator[None]:
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    loop = asyncio.get_running_loop()
    handled = [signal.SIGTERM, signal.SIGINT]
    for number in handled:
        loop.add_signal_handler(number, lifecycle.on_signal, number)
    handled.append(signal.SIGHUP)  # else it would end the process at once, with all that it serves
    loop.add_signal_handler(signal.SIGHUP, on_reload or nothing_to_reload)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _owned(lifecycle: Lifecycle, owner: TextIO) -> Generator[None]:
    loop, pipe = asyncio.get_running_loop(), owner.fileno()

    def on_readable() -> None:
        if not os.read(pipe, _DISCARDED_BYTES):
            loop.remove_reader(pipe)
            logger.warning("the owner of this server has gone: stopping at once")
            lifecycle.stop_now()

    loop.add_reader(pipe, on_readable)
    try:
        yield
    finally:
        loop.remove_reader(pipe)
