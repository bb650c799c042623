"""The process groups of a replica's ranks: who exchanges what with whom. Every group has a deadline."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sixfold.core.parallel.degrees import Degrees

_dist: Any = dist  # typed in part


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks that exchange tensors.

    Attributes:
        ranks: Global ranks in the group's order.
        index: This process's place in it.
        handle: Of torch.distributed; None for a group of one.
    """

    ranks: tuple[int, ...]
    index: int
    handle: Any = None

    @property
    def size(self) -> int:
        """How many ranks."""
        return len(self.ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """This process's place among the ranks of its replica.

    Attributes:
        degrees: Ranks along each axis.
        rank: Of this process; rank 0 decides.
        device: Where it computes.
        world: All ranks.
        context: Those that share the tokens of this rank's rows.
        ulysses: Of them, those that exchange heads with this one.
        ring: Of them, those that pass it key/value blocks.
        control: The context group on the host, for lengths: waiting for these must not wait for a GPU's stream.
    """

    degrees: Degrees
    rank: int
    device: torch.device
    world: Group
    context: Group
    ulysses: Group
    ring: Group
    control: Group

    @property
    def row_group(self) -> int:
        """Which share of a step's rows this rank computes."""
        return self.degrees.row_group(self.rank)

    def close(self) -> None:
        """Ends the groups without waiting for the others, who may be gone."""
        if dist.is_initialized():
            dist.destroy_process_group()


def single(device: torch.device) -> Mesh:
    """The mesh of a process alone."""
    alone = Group(ranks=(0,), index=0)
    return Mesh(
        degrees=Degrees(),
        rank=0,
        device=device,
        world=alone,
        context=alone,
        ulysses=alone,
        ring=alone,
        control=alone,
    )


def join(degrees: Degrees, rank: int, device: torch.device, store: Path, *, timeout_s: float) -> Mesh:
    """Meets the other ranks; all of them call it. NCCL joins GPUs, gloo processors.

    Args:
        degrees: The same in all ranks.
        rank: Of this process.
        device: Where it computes.
        store: A file in a folder that only this user can read, through which they find each other; not there yet.
        timeout_s: After which a missing rank, or an exchange that does not end, is an error.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=_dist.FileStore(str(store), degrees.num_ranks),
        rank=rank,
        world_size=degrees.num_ranks,
        timeout=timeout,
        device_id=device if on_gpu else None,
    )
    blocks = sorted({degrees.peers(each, "context") for each in range(degrees.num_ranks)})
    inner = [block[start : start + degrees.ulysses] for block in blocks for start in _starts(degrees)]
    outer = [block[offset :: degrees.ulysses] for block in blocks for offset in range(degrees.ulysses)]
    context = _make(blocks, rank, timeout)
    return Mesh(
        degrees=degrees,
        rank=rank,
        device=device,
        world=Group(ranks=tuple(range(degrees.num_ranks)), index=rank, handle=dist.group.WORLD),
        context=context,
        ulysses=_make(inner, rank, timeout),
        ring=_make(outer, rank, timeout),
        control=_make(blocks, rank, timeout, backend="gloo") if on_gpu else context,
    )


def _starts(degrees: Degrees) -> range:
    return range(0, degrees.context, degrees.ulysses)


def _make(
    groups: Sequence[tuple[int, ...]], rank: int, timeout: datetime.timedelta, *, backend: str | None = None
) -> Group:
    """Makes all of them, which every rank must do in the same order; returns the one with this rank."""
    mine: Group | None = None
    for ranks in groups:
        handle = _dist.new_group(list(ranks), timeout=timeout, backend=backend) if len(ranks) > 1 else None
        if rank in ranks:
            mine = Group(ranks=ranks, index=ranks.index(rank), handle=handle)
    assert mine is not None, "every rank is in one group of each kind"
    return mine
