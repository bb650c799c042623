"""The modules that all ranks of a replica have, and how one rank computes its share of a forward."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from sixfold.core.errors import ConfigError
from sixfold.core.parallel.codec import kind_of
from sixfold.core.parallel.mesh import Mesh
from sixfold.core.parallel.plan import SplitPlan, apply_plan
from sixfold.core.parallel.share import LengthBook, Share, sharing


@dataclass(frozen=True, slots=True, kw_only=True)
class RankModule:
    """A module of which every rank has a copy.

    Attributes:
        module: Loaded, on this rank's device.
        plan: How its tokens are split; None if that is not known: then only its rows can be divided.
        splits_itself: Its forward asks `current_share` for the mesh and divides its tokens by itself, without a plan.
    """

    module: torch.nn.Module
    plan: SplitPlan | None = None
    splits_itself: bool = False


class RankModules:
    """Computes this rank's shares. Owner: the thread of the forwards.

    Args:
        modules: By the name that all ranks have for them.
        mesh: Of this rank.

    Raises:
        ConfigError: A module's tokens shall be split, and nobody knows how.
    """

    def __init__(self, modules: Mapping[str, RankModule], mesh: Mesh) -> None:
        self._modules = {name: each.module for name, each in modules.items()}
        self._mesh = mesh
        self._book = LengthBook(mesh)
        self._hooks: list[RemovableHandle] = []
        self._split_themselves = frozenset(name for name, each in modules.items() if each.splits_itself)
        for name, each in modules.items():
            if mesh.degrees.context == 1 or each.splits_itself:
                continue
            if each.plan is None:
                raise ConfigError(
                    f"parallel.context: it is not known how to split {type(each.module).__name__} ({name}). Use "
                    "'cfg' to divide its rows, or remove 'parallel'."
                )
            self._hooks += apply_plan(each.module, each.plan)

    def name_of(self, function: Any) -> str | None:
        """The name of a module that all ranks have; None for anything else."""
        return next((name for name, module in self._modules.items() if module is function), None)

    def close(self) -> None:
        """Leaves the modules as they were."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def run(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """This rank's share of a forward; all ranks of its context group call it with equal arguments."""
        splits = self._mesh.degrees.context > 1
        by_plan = splits and name not in self._split_themselves
        key = (name, kind_of("", arguments)) if by_plan else None
        share = Share(self._mesh, self._book, key)
        with sharing(share, takes_attention=by_plan) if splits else contextlib.nullcontext():
            return self._modules[name](**arguments)
