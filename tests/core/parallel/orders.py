"""Stands for rank 0's leader where ranks are processes of a test: orders are broadcast, and all ranks run the same modules."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

from sixfold.core.parallel.attention import UnsupportedAttention
from sixfold.core.parallel.degrees import Degrees
from sixfold.core.parallel.mesh import Mesh
from sixfold.core.parallel.modules import RankModule, RankModules

_dist: Any = dist


class FakeLeader:
    """What models use of `sixfold.core.parallel.leader.Leader`.

    Attributes:
        num_orders: Forwards that went over the ranks.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.degrees: Degrees = mesh.degrees
        self.num_row_groups = 1
        self.num_orders = 0
        self._modules: RankModules | None = None

    def share(self, modules: Mapping[str, RankModule]) -> None:
        self._modules = RankModules(modules, self.mesh)

    def shares(self, function: Any) -> bool:
        return self._modules is not None and self._modules.name_of(function) is not None

    def run(self, function: Any, parts: Sequence[Mapping[str, Any]]) -> list[Any]:
        assert self._modules is not None
        name = self._modules.name_of(function)
        assert name is not None
        self.num_orders += 1
        _dist.broadcast_object_list([(name, parts[0])], src=0)
        return [self._modules.run(name, parts[0])]

    def close(self) -> None:
        _dist.broadcast_object_list([None], src=0)


def follow(mesh: Mesh, modules: Mapping[str, RankModule]) -> None:
    """Computes what the leader orders, to its end."""
    own = RankModules(modules, mesh)
    while True:
        order: list[Any] = [None]
        _dist.broadcast_object_list(order, src=0)
        if order[0] is None:
            own.close()
            return
        with contextlib.suppress(UnsupportedAttention):  # which all ranks raise alike
            own.run(*order[0])
