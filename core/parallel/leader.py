"""Rank 0's side: it tells the others what to compute, computes its own share, and notices within a bound what goes wrong.

A forward ends in one of three ways. All ranks are done. All ranks raised: then each is as before, and the error is the
request's. Or some did and some did not, one is gone, or the deadline passed: the replica is lost, its process ends, and the
serving process starts it anew. Nothing waits longer than the deadline.
"""

from __future__ import annotations

import functools
import logging
import math
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from sixfold.core.batching.model import DeviceLost
from sixfold.core.errors import ConfigError, SixfoldError
from sixfold.core.parallel.codec import as_bytes, pack, read_message, send_message, unpack
from sixfold.core.parallel.degrees import Degrees
from sixfold.core.parallel.mesh import Mesh
from sixfold.core.parallel.messages import Done, Forward, Loaded, LoadingFailed, Raised, Stop
from sixfold.core.parallel.modules import RankModule, RankModules

_log = logging.getLogger(__name__)
_dist: Any = dist

_GRACE_S = 5.0
"""A lost forward ends by itself where the backend sees the closed connection; after this the process is ended."""

_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another rank of the replica.

    Attributes:
        rank: Its number.
        process: Started by this one.
        sock: To it.
    """

    rank: int
    process: subprocess.Popen[bytes]
    sock: socket.socket


class Leader:
    """Rank 0 of a replica.

    Args:
        degrees: Of all ranks.
        peers: The others, in order.
        meet: Joins the mesh; called when all have loaded.
        step_timeout_s: A forward that takes longer is lost.
        load_timeout_s: A rank that takes longer to load is lost.
        on_lost: Ends this process; called, from any thread, when a forward can't be ended otherwise.
        forget: Removes what only the meeting needed; called at the end.
    """

    def __init__(
        self,
        degrees: Degrees,
        peers: Sequence[Peer],
        meet: Callable[[], Mesh],
        *,
        step_timeout_s: float,
        load_timeout_s: float,
        on_lost: Callable[[], None],
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self.degrees = degrees
        self._peers = tuple(peers)
        self._meet = meet
        self._step_timeout_s = step_timeout_s
        self._load_timeout_s = load_timeout_s
        self._on_lost = on_lost
        self._forget = forget
        self._inboxes: dict[int, queue.SimpleQueue[Any]] = {peer.rank: queue.SimpleQueue() for peer in peers}
        self._number = 0
        self._lost: str | None = None
        self._noting = threading.Lock()
        self._closing = threading.Event()
        self._deadline_s: float | None = None
        self._modules: RankModules | None = None
        self._mesh: Mesh | None = None
        for peer in self._peers:
            threading.Thread(target=self._listen, args=(peer,), name=f"rank {peer.rank}", daemon=True).start()
        threading.Thread(target=self._watch, name="rank deadline", daemon=True).start()

    @property
    def num_row_groups(self) -> int:
        """Shares into which rows are divided."""
        return self.degrees.num_row_groups

    @property
    def mesh(self) -> Mesh:
        """Of rank 0, once the modules are shared."""
        assert self._mesh is not None, "share() comes first"
        return self._mesh

    def share(self, modules: Mapping[str, RankModule]) -> None:
        """Meets the others, who load the same modules under the same names.

        Raises:
            ConfigError: A rank can't load them, or they can't be split.
            SixfoldError: A rank ended, or did not load in time.
        """
        for peer in self._peers:
            message = self._next(peer, time.monotonic() + self._load_timeout_s)
            if isinstance(message, LoadingFailed):
                kind = ConfigError if message.is_usage_error else SixfoldError
                raise kind(f"rank {peer.rank}: {message.message}")
            if not isinstance(message, Loaded):
                raise SixfoldError(f"rank {peer.rank} of the replica did not load: {self._lost or 'it took too long'}")
        self._mesh = self._meet()
        self._modules = RankModules(modules, self._mesh)

    def shares(self, function: Any) -> bool:
        """Whether the function is a module that all ranks have."""
        return self._modules is not None and self._modules.name_of(function) is not None

    def run(self, function: Any, parts: Sequence[Mapping[str, Any] | None]) -> list[Any]:
        """One forward of a shared module over all ranks. [the thread of the forwards]

        Args:
            function: The module.
            parts: Its arguments for each share of the rows; None for a share without. The first is never None.

        Returns:
            The answers of the shares that had rows, in order.

        Raises:
            DeviceLost: A rank is gone or hangs.
        """
        assert self._modules is not None and parts[0] is not None
        name = self._modules.name_of(function)
        assert name is not None, "only shared modules run over the ranks"
        self._check()
        self._number += 1
        deadline_s = self._deadline_s = time.monotonic() + self._step_timeout_s
        try:
            self._order(name, parts)
            try:
                own = self._modules.run(name, parts[0])
            except Exception as error:  # the border between the core and a model's code
                self._all_raised(error, deadline_s)
                raise
            return [own, *self._answers(deadline_s)]
        finally:
            self._deadline_s = None

    def _order(self, name: str, parts: Sequence[Mapping[str, Any] | None]) -> None:
        packed = [None if part is None else pack(part, self.mesh.device) for part in parts]
        operations: list[Any] = []
        for peer in self._peers:
            group = self.degrees.row_group(peer.rank)
            mine = packed[group]
            is_first = group > 0 and peer.rank == self.degrees.first_of_row_group(group)
            order = Forward(
                number=self._number,
                module=name,
                arguments=None if mine is None else mine[0],
                answers=is_first and mine is not None,
            )
            try:
                send_message(peer.sock, order)
            except OSError as error:
                raise DeviceLost(f"rank {peer.rank} takes no orders: {error}") from error
            tensors = [] if mine is None else mine[1]
            operations += [_dist.P2POp(_dist.isend, as_bytes(each), peer.rank) for each in tensors if each.numel()]
        with _Losing("sending a step"):
            for work in _dist.batch_isend_irecv(operations) if operations else ():
                work.wait()

    def _answers(self, deadline_s: float) -> list[Any]:
        found: list[Any] = []
        for peer in self._peers:
            message = self._next(peer, deadline_s)
            if not isinstance(message, Done) or message.number != self._number:
                text = message.message if isinstance(message, Raised) else self._lost or "it does not answer"
                raise DeviceLost(f"rank {peer.rank} did not do its share of a step: {text}")
            if message.answer is not None:
                found.append(unpack(message.answer, self.mesh.device, functools.partial(_receive, peer.rank)))
        return found

    def _all_raised(self, error: Exception, deadline_s: float) -> None:
        """Returns if every rank that had rows like ours raised as well; they are then ready for the next order."""
        until_s = min(deadline_s, time.monotonic() + _GRACE_S)
        for peer in self._peers:
            message = self._next(peer, until_s)
            alike = isinstance(message, Raised) or (isinstance(message, Done) and message.answer is None)
            if not alike or (self.degrees.row_group(peer.rank) == 0 and not isinstance(message, Raised)):
                raise DeviceLost(f"a step failed in rank 0 alone, so the ranks are apart: {error}") from error

    def _next(self, peer: Peer, deadline_s: float) -> Any:
        """The next message of a rank; None if none comes in time, or it is gone."""
        try:
            return self._inboxes[peer.rank].get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            return None

    def _check(self) -> None:
        if self._lost is not None:
            raise DeviceLost(self._lost)

    def _listen(self, peer: Peer) -> None:
        while (message := read_message(peer.sock)) is not None:
            if isinstance(message, Raised):
                # If rank 0's share did not raise, it waits for this rank's part of an exchange that will not come.
                self._deadline_s = min(self._deadline_s or math.inf, time.monotonic() + _GRACE_S)
            self._inboxes[peer.rank].put(message)
        # First the reason, then the news: whoever waits for the answer says why it did not come.
        is_first = not self._closing.is_set() and self._note(
            f"rank {peer.rank} of the replica {_how_it_ended(peer.process)}"
        )
        self._inboxes[peer.rank].put(None)
        if is_first:
            self._end()

    def _watch(self) -> None:
        while not self._closing.wait(min(1.0, self._step_timeout_s / 4)):
            deadline_s = self._deadline_s
            if deadline_s is not None and time.monotonic() > deadline_s:
                if self._note(
                    f"a step over the ranks did not end (parallel.step_timeout_s is {self._step_timeout_s:g}), or one of "
                    "them failed in it alone"
                ):
                    self._end()
                return

    def _note(self, reason: str) -> bool:
        """Whether this is the first reason for which the ranks are lost."""
        with self._noting:
            if self._lost is not None:
                return False
            self._lost = reason
        _log.error("%s; the replica is started anew", reason)
        return True

    def _end(self) -> None:
        self.forget()
        if not self._closing.wait(_GRACE_S):
            self._on_lost()

    def close(self) -> None:
        """Ends the other ranks."""
        self._closing.set()
        for peer in self._peers:
            try:
                send_message(peer.sock, Stop())
            except OSError:
                _log.info("rank %d is gone already", peer.rank)
        for peer in self._peers:
            try:
                peer.process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                peer.process.kill()
                peer.process.wait()
            peer.sock.close()
        if self._mesh is not None and self._lost is None:  # else the groups would wait for those who are gone
            self._mesh.close()
        self.forget()

    def forget(self) -> None:
        """Removes what only the meeting needed; for a process that is about to end at once."""
        self._forget()


def _receive(rank: int, tensors: Sequence[torch.Tensor]) -> None:
    operations = [_dist.P2POp(_dist.irecv, as_bytes(each), rank) for each in tensors if each.numel()]
    with _Losing("an answer"):
        for work in _dist.batch_isend_irecv(operations) if operations else ():
            work.wait()


class _Losing:
    """What fails inside has lost the device: the exchange was left half-way."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, RuntimeError):
            raise DeviceLost(f"{self._what} between the ranks failed: {error}") from error


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    """Its sockets are closed before it can be waited for; a step that waits for it must not wait long for that."""
    try:
        return f"ended with status {process.wait(0.2)}"
    except subprocess.TimeoutExpired:
        return "is ending"
