"""The other ranks' side: they compute their share of what rank 0 orders, and end when it is gone."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from sixfold.core.parallel.codec import as_bytes, pack, read_message, send_message, unpack
from sixfold.core.parallel.mesh import Mesh
from sixfold.core.parallel.messages import Done, Forward, FromFollower, FromLeader, Raised, Stop
from sixfold.core.parallel.modules import RankModules

_log = logging.getLogger(__name__)
_dist: Any = dist


class Orders:
    """What rank 0 sends, read in a thread of its own, so that its end is noticed in the middle of a forward.

    Args:
        sock: To rank 0.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._queue: queue.SimpleQueue[FromLeader] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def next(self) -> FromLeader:
        """The next order; waits as long as rank 0 lives."""
        return self._queue.get()

    def send(self, message: FromFollower) -> None:
        """Tells rank 0."""
        send_message(self._sock, message)

    def _read(self) -> None:
        while (message := read_message(self._sock)) is not None:
            self._queue.put(message)
        # Rank 0 is gone, and with it whoever would wait for this process or its part of an exchange.
        os._exit(0)


class Follower:
    """Computes what is ordered. Owner: the main thread of its process.

    Args:
        orders: Of rank 0.
        modules: Of this rank.
        mesh: Likewise.
    """

    def __init__(self, orders: Orders, modules: RankModules, mesh: Mesh) -> None:
        self._orders = orders
        self._modules = modules
        self._mesh = mesh
        self._on_their_way: Any = (
            None  # tensors of the last answer: they must live until the next order, which follows it
        )

    def run(self) -> None:
        """Returns when rank 0 says stop."""
        while not isinstance(order := self._orders.next(), Stop):
            self._obey(order)

    def _obey(self, order: Forward) -> None:
        if order.arguments is None:
            self._orders.send(Done(number=order.number))
            return
        arguments = unpack(order.arguments, self._mesh.device, _receive)
        try:
            answer = self._modules.run(order.module, arguments)
        except Exception as error:  # the border between the core and a model's code; rank 0 decides what it means
            _log.exception("rank %d: its share of %s raised", self._mesh.rank, order.module)
            self._orders.send(Raised(number=order.number, message=f"{type(error).__name__}: {error}"))
            return
        if not order.answers:
            self._orders.send(Done(number=order.number))
            return
        header, tensors = pack(answer, self._mesh.device)
        # The header first: NCCL's first exchange of two ranks blocks until both are in it, and rank 0 waits for the header.
        self._orders.send(Done(number=order.number, answer=header))
        operations = [_dist.P2POp(_dist.isend, as_bytes(each), 0) for each in tensors if each.numel()]
        self._on_their_way = (_dist.batch_isend_irecv(operations) if operations else (), tensors)


def _receive(tensors: Sequence[torch.Tensor]) -> None:
    operations = [_dist.P2POp(_dist.irecv, as_bytes(each), 0) for each in tensors if each.numel()]
    for work in _dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
