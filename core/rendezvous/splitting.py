"""Finds how a denoiser of the diffusers library is split among context ranks: by its own plan, or by its blocks.

The library's plan is read, not run: its own context parallelism needs even lengths, has no ring on processors and gathers
the whole key/value of a ring before it attends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sixfold.core.family import ModelFiles
from sixfold.core.parallel.plan import GatherOutput, SplitInput, SplitOutput, SplitPlan, parameter_names
from sixfold.core.parallel.share import Share, current_share
from sixfold.core.rendezvous.row_cache import CachedBlock, transformer_blocks
from sixfold.core.rendezvous.streams import rebuilt

_TEXT = "encoder_hidden_states"
_POSITION_WORDS = ("rotary", "rope", "freqs", "pos_emb")


def split_plan(module: torch.nn.Module) -> SplitPlan | None:
    """How the module's tokens are split; None if that is not known."""
    own = getattr(module, "_cp_plan", None)
    if own:
        return read_plan(own)
    groups = _groups(module)
    if not groups:
        return None
    return SplitPlan(
        parts={}, splits_text=any(group[0].encoder_index is not None for group in groups), blocks=_hook_blocks
    )


def left_out(path: Path, only: Collection[str] | None) -> dict[str, None]:
    """Arguments for a pipeline's loader that leave out every component but some; {} for None."""
    if only is None:
        return {}
    index = ModelFiles(path).json("model_index.json")
    return {name: None for name, value in index.items() if isinstance(value, list) and name not in only}


def read_plan(plan: Mapping[str, Any]) -> SplitPlan:
    """A ``_cp_plan`` of the library."""
    parts: dict[str, list[SplitInput | SplitOutput | GatherOutput]] = {}
    for path, rules in plan.items():
        found = parts.setdefault(path, [])
        if hasattr(rules, "items"):
            inputs: Mapping[Any, Any] = rules
            found += [_split(name, inputs[name]) for name in inputs]
            continue
        outputs = cast("Sequence[Any]", rules if isinstance(rules, list | tuple) else [rules])
        found += [GatherOutput(index=i, dim=rule.gather_dim) for i, rule in enumerate(outputs) if rule is not None]
    names = {rule.name for rules in parts.values() for rule in rules if isinstance(rule, SplitInput)}
    return SplitPlan(parts=parts, splits_text=_TEXT in names)


def _split(name: Any, rule: Any) -> SplitInput | SplitOutput:
    if rule.split_output:
        return SplitOutput(index=int(name), dim=rule.split_dim, num_dims=rule.expected_dims)
    return SplitInput(name=str(name), dim=rule.split_dim, num_dims=rule.expected_dims)


def _groups(module: torch.nn.Module) -> list[list[CachedBlock]]:
    """The registered blocks, those of one list together."""
    owners = {
        id(block): index
        for index, child in enumerate(module.children())
        if isinstance(child, torch.nn.ModuleList)
        for block in child
    }
    groups: dict[int, list[CachedBlock]] = {}
    for block in transformer_blocks(module, at_least=1):
        groups.setdefault(owners[id(block.module)], []).append(block)
    return list(groups.values())


def _hook_blocks(module: torch.nn.Module) -> list[RemovableHandle]:
    """Between the first and the last block of each list the tokens are split, and whatever else a block gets for each."""
    handles: list[RemovableHandle] = []
    for group in _groups(module):
        for block in group:
            before = _Before(block, is_first=block is group[0])
            handles.append(block.module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(group[-1].module.register_forward_hook(_After(group[-1])))
    return handles


class _Before:
    """Cuts a block's arguments."""

    def __init__(self, block: CachedBlock, *, is_first: bool) -> None:
        self._names = parameter_names(block.module)
        self._has_text = block.encoder_index is not None
        self._hidden = self._names[0]
        self._is_first = is_first

    def __call__(
        self, _block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        share = current_share()
        if share is None:
            return args, kwargs
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if self._is_first:
            text = given.get(_TEXT) if self._has_text else None
            share.totals = {"hidden": given[self._hidden].shape[1], "text": 0 if text is None else text.shape[1]}
            share.is_split = True
        cut = {name: self._cut(share, name, value) for name, value in given.items()}
        return tuple(cut[name] for name in self._names[: len(args)]), {name: cut[name] for name in kwargs}

    def _cut(self, share: Share, name: str, value: Any) -> Any:
        if name == self._hidden or (name == _TEXT and self._has_text):
            return share.take(value, 1) if self._is_first and value is not None else value
        if isinstance(value, tuple | list):
            return rebuilt(value, (self._cut(share, name, each) for each in cast("Sequence[Any]", value)))
        if not isinstance(value, Tensor):
            return value
        dims = _token_dims(name, value)
        hidden, text = share.totals["hidden"], share.totals["text"]
        for dim in dims:
            if value.shape[dim] == hidden:
                return share.take(value, dim)
            if text and value.shape[dim] == hidden + text:  # the image's tokens first, as the library joins them
                parts = torch.split(value, [hidden, text], dim=dim)
                return torch.cat([share.take(part, dim) for part in parts], dim=dim)
        return value


class _After:
    """Puts the results of the last block together."""

    def __init__(self, block: CachedBlock) -> None:
        self._block = block

    def __call__(self, _block: Any, _args: Any, output: Any) -> Any:
        share = current_share()
        if share is None:
            return output
        hidden, text = self._block.unpack(output)
        hidden = share.gather(hidden, 1)
        text = None if text is None else share.gather(text, 1)
        share.is_split = False
        return self._block.pack(hidden, text, output)


def _token_dims(name: str, value: Tensor) -> tuple[int, ...]:
    """Along which an argument may hold one entry for each token; () for one that holds none."""
    if "mask" in name:
        return (value.ndim - 1,)
    if any(word in name for word in _POSITION_WORDS):
        return (0,) if value.ndim <= 2 else (1, 2)
    return (1,) if "temb" in name and value.ndim >= 3 else ()
