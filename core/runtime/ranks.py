"""Starts the other ranks of a replica and makes this process their leader. Used in a worker, before its model loads."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from sixfold.core.memory.forecast import rank_devices
from sixfold.core.parallel.codec import send_message
from sixfold.core.parallel.leader import Leader, Peer
from sixfold.core.parallel.mesh import join
from sixfold.core.runtime import wire
from sixfold.core.runtime.devices import resolve_device
from sixfold.core.telemetry.logs import log_format


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStart:
    """The first message to a rank.

    Attributes:
        load: What the replica loads; its device is the rank's own.
        rank: Its number.
        store: Where the ranks find each other.
    """

    load: wire.Load
    rank: int
    store: Path


def start_ranks(load: wire.Load, *, on_lost: Callable[[], None]) -> Leader:
    """Starts a process per further rank; they load while this one does.

    Args:
        load: With ``ranks``.
        on_lost: Ends this process.
    """
    assert load.ranks is not None
    degrees = load.ranks.degrees
    devices = rank_devices(resolve_device(load.device), degrees.num_ranks)
    folder = Path(tempfile.mkdtemp(prefix="sixfold-ranks-"))  # readable for this user only
    store = folder / "store"
    peers = [_start(load, rank, devices[rank], store) for rank in range(1, degrees.num_ranks)]
    return Leader(
        degrees,
        peers,
        functools.partial(join, degrees, 0, torch.device(devices[0]), store, timeout_s=load.ranks.step_timeout_s),
        step_timeout_s=load.ranks.step_timeout_s,
        load_timeout_s=load.ranks.load_timeout_s,
        on_lost=on_lost,
        forget=functools.partial(shutil.rmtree, folder, ignore_errors=True),
    )


def _start(load: wire.Load, rank: int, device: str, store: Path) -> Peer:
    ours, theirs = socket.socketpair()
    env = {**os.environ, "OMP_NUM_THREADS": str(load.num_threads), "NUMBA_NUM_THREADS": str(load.num_threads)}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "sixfold.core.runtime.rank", str(theirs.fileno()), log_format()],
            pass_fds=(theirs.fileno(),),
            env=env,
        )
    own = msgspec.structs.replace(load, device=device)
    send_message(ours, RankStart(load=own, rank=rank, store=store))
    return Peer(rank=rank, process=process, sock=ours)
