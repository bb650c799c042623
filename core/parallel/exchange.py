"""The exchanges of tensors that context parallelism is made of; parts may have different lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sixfold.core.parallel.mesh import Group

_dist: Any = dist
_all_gather: Any = getattr(dist, "all_gather_single", None) or _dist.all_gather_into_tensor  # renamed in torch 2.13


def all_to_all(parts: Sequence[Tensor], sizes: Sequence[int], group: Group) -> Tensor:
    """Gives each rank its part and returns what all gave to this one, end to end.

    Args:
        parts: One a rank, of any shape.
        sizes: How many elements each rank has for this one.
        group: All its ranks call.

    Returns:
        Flat, in the order of the ranks.
    """
    sent = torch.cat([part.reshape(-1) for part in parts])
    if group.size == 1:
        return sent
    received = sent.new_empty(sum(sizes))
    _dist.all_to_all_single(received, sent, list(sizes), [part.numel() for part in parts], group=group.handle)
    return received


def all_gather(tensor: Tensor, lengths: Sequence[int], dim: int, group: Group) -> Tensor:
    """The ranks' parts of a tensor, end to end along ``dim``.

    Args:
        tensor: This rank's part.
        lengths: Of each rank's part along ``dim``.
        dim: Along which it was cut.
        group: All its ranks call.
    """
    if group.size == 1:
        return tensor
    first = tensor.movedim(dim, 0)
    # Parts of equal size travel without padding, which is the rule; gloo and NCCL gather equal parts only.
    longest = max(lengths)
    padded = first.new_zeros((longest, *first.shape[1:]))
    padded[: first.shape[0]] = first
    as_sent = padded.to(torch.uint8) if tensor.dtype is torch.bool else padded
    gathered = as_sent.new_empty((group.size * longest, *first.shape[1:]))
    _all_gather(gathered, as_sent, group=group.handle)
    parts = [part[:length] for part, length in zip(torch.split(gathered, longest), lengths, strict=True)]
    return torch.cat(parts).to(tensor.dtype).movedim(0, dim)


def gather_lengths(length: int, group: Group) -> tuple[int, ...]:
    """What each rank of a group on the host has of something."""
    if group.size == 1:
        return (length,)
    found: list[Any] = [None] * group.size
    _dist.all_gather_object(found, length, group=group.handle)
    return tuple(found)


def collect(tensor: Tensor, shapes: Sequence[Sequence[int]], group: Group) -> list[Tensor]:
    """What all ranks have, in the first rank of the group; nothing in the others.

    Args:
        tensor: This rank's.
        shapes: Of all ranks' tensors.
        group: All its ranks call.
    """
    if group.index > 0:
        _exchange([(dist.isend, tensor.contiguous(), group.ranks[0])], group)
        return []
    found = [tensor, *(tensor.new_empty(tuple(shape)) for shape in shapes[1:])]
    _exchange([(dist.irecv, found[i], group.ranks[i]) for i in range(1, group.size)], group)
    return found


def hand_out(parts: Sequence[Tensor], shape: Sequence[int], like: Tensor, group: Group) -> Tensor:
    """This rank's part of what the first rank of the group has.

    Args:
        parts: Of all ranks, in the first; () in the others.
        shape: Of this rank's part.
        like: A tensor of its type and device.
        group: All its ranks call.
    """
    if group.index > 0:
        taken = like.new_empty(tuple(shape))
        _exchange([(dist.irecv, taken, group.ranks[0])], group)
        return taken
    _exchange([(dist.isend, parts[i].contiguous(), group.ranks[i]) for i in range(1, group.size)], group)
    return parts[0]


def _exchange(transfers: Sequence[tuple[Any, Tensor, int]], group: Group) -> None:
    operations = [
        _dist.P2POp(operation, tensor, rank, group.handle) for operation, tensor, rank in transfers if tensor.numel()
    ]
    for work in _dist.batch_isend_irecv(operations) if operations else ():
        work.wait()


def pass_on(tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]], group: Group) -> Callable[[], list[Tensor]]:
    """Begins to give tensors to the next rank of a ring and to take those of the one before.

    Args:
        tensors: Contiguous.
        shapes: Of what comes.
        group: All its ranks call.

    Returns:
        Waits for what comes, and returns it.
    """
    following = group.ranks[(group.index + 1) % group.size]
    previous = group.ranks[(group.index - 1) % group.size]
    taken = [
        tensor.new_empty(tuple(shape), dtype=torch.uint8 if tensor.dtype is torch.bool else tensor.dtype)
        for tensor, shape in zip(tensors, shapes, strict=True)
    ]
    given = [tensor.to(torch.uint8) if tensor.dtype is torch.bool else tensor for tensor in tensors]
    operations = [
        *(_dist.P2POp(_dist.isend, tensor, following, group.handle) for tensor in given if tensor.numel()),
        *(_dist.P2POp(_dist.irecv, tensor, previous, group.handle) for tensor in taken if tensor.numel()),
    ]
    works: list[Any] = _dist.batch_isend_irecv(operations) if operations else []

    def wait() -> list[Tensor]:
        for work in works:
            work.wait()
        return [new.to(old.dtype) for new, old in zip(taken, tensors, strict=True)]

    return wait
