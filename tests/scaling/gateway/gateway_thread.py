"""A real gateway in a thread, for clients that block, such as a browser."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from sixfold.core.serving import lifecycle
from sixfold.core.serving.lifecycle import Listening
from sixfold.scaling.gateway.app import Gateway
from tests.scaling.gateway.scripted import WAIT_S


class GatewayThread:
    """Serves while the block runs, then drains."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._ready: SimpleQueue[Listening | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""

    def _run(self) -> None:
        try:
            lifecycle.run(self._gateway, on_listening=self._ready.put)
        except BaseException as failure:
            self._ready.put(failure)
            raise

    def __enter__(self) -> Self:
        self._thread.start()
        listening = self._ready.get(timeout=WAIT_S)
        if isinstance(listening, BaseException):
            raise listening
        self._listening = listening
        self.url = listening.url
        return self

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self._listening.lifecycle.drain_threadsafe()
        self._thread.join(WAIT_S)
        assert kind is not None or not self._thread.is_alive()
