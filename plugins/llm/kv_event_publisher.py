"""Sends batches of cache events to all who subscribe over ZMQ, and again to those who missed some."""

from __future__ import annotations

import logging
import threading
from collections import deque

import zmq

from sixfold.core.errors import ConfigError

_LOG = logging.getLogger(__name__)

_END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
_MAX_WAITING_BATCHES = 10_000
_LINGER_MS = 500


class KvEventPublisher:
    """A PUB socket, and a ROUTER socket for replay, served by a thread of their own.

    A replay request is an empty frame and the first wanted number (8 bytes, big-endian); the answers are an empty frame, the
    number and the batch, and last the number -1 with an empty batch.

    Args:
        endpoint: Where subscribers connect, such as ``tcp://*:5557``; a port of ``*`` takes a free one.
        replay_endpoint: Where missed batches can be asked for; None for nowhere.
        topic: First frame of every message.
        num_replayed: Batches that are kept for replay.

    Raises:
        ConfigError: An endpoint can't be bound.
    """

    def __init__(
        self, endpoint: str, *, replay_endpoint: str | None = None, topic: str = "", num_replayed: int = 10_000
    ) -> None:
        self._topic = topic.encode()
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=num_replayed)
        self._next_number = 0
        self._context = zmq.Context()
        self._publisher = self._bind(zmq.PUB, endpoint)
        self._replay = None if replay_endpoint is None else self._bind(zmq.ROUTER, replay_endpoint)
        self._inlet = self._context.socket(zmq.PUSH)
        self._inlet.set_hwm(_MAX_WAITING_BATCHES)
        self._inlet.bind("inproc://batches")
        self.endpoint = self._publisher.get_string(zmq.LAST_ENDPOINT)
        self.replay_endpoint = None if self._replay is None else self._replay.get_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._serve, name="kv-events", daemon=True)
        self._thread.start()

    def publish(self, batch: bytes) -> None:
        """Hands a batch over, without waiting; called on the device thread.

        If the sending thread lags by thousands of batches, this one is dropped: consumers see the gap in the numbers.
        """
        number = self._next_number.to_bytes(8, "big")
        self._next_number += 1
        try:
            self._inlet.send_multipart((number, batch), zmq.NOBLOCK)
        except zmq.Again:
            _LOG.warning("cache events are dropped: nobody sends them")

    def close(self) -> None:
        """Sends what waits and ends the thread; called on the device thread."""
        self._inlet.send_multipart((b"", b""))
        self._thread.join()
        self._inlet.close(linger=0)
        self._context.term()

    def _bind(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = _LINGER_MS
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigError(
                f"kv_events: {endpoint!r} can't be bound: {error}. Give each replica an endpoint of its own."
            ) from error
        return socket

    def _serve(self) -> None:
        outlet = self._context.socket(zmq.PULL)
        outlet.set_hwm(_MAX_WAITING_BATCHES)
        outlet.connect("inproc://batches")
        poller = zmq.Poller()
        poller.register(outlet, zmq.POLLIN)
        if self._replay is not None:
            poller.register(self._replay, zmq.POLLIN)
        going = True
        while going:
            ready = dict(poller.poll())
            if outlet in ready:
                number, batch = outlet.recv_multipart()
                going = bool(number)
                if going:
                    self._kept.append((number, batch))
                    self._publisher.send_multipart((self._topic, number, batch))
            if self._replay is not None and self._replay in ready:
                self._answer(self._replay)
        for socket in (outlet, self._publisher, self._replay):
            if socket is not None:
                socket.close()

    def _answer(self, replay: zmq.Socket[bytes]) -> None:
        client, *request = replay.recv_multipart()
        if len(request) != 2 or len(request[1]) != 8:
            _LOG.warning("a request for missed cache events is not an empty frame and a number of 8 bytes; ignored")
            return
        for number, batch in tuple(self._kept):
            if number >= request[1]:  # big-endian bytes compare as their numbers do
                replay.send_multipart((client, b"", number, batch))
        replay.send_multipart((client, b"", _END_OF_REPLAY, b""))
