"""Where a module's tensors are cut among context ranks and put together again, as hooks on its parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sixfold.core.parallel.share import Share, current_share


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitInput:
    """An argument that is cut.

    Attributes:
        name: Of the parameter.
        dim: Along which.
        num_dims: It is left whole if it has another number of dimensions; None cuts any.
    """

    name: str
    dim: int
    num_dims: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOutput:
    """A result that is cut.

    Attributes:
        index: In the tuple that the part returns.
        dim: Along which.
        num_dims: See `SplitInput`.
    """

    index: int
    dim: int
    num_dims: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherOutput:
    """A result that is put together; after it, nothing is split any more.

    Attributes:
        index: In the tuple that the part returns.
        dim: Along which it was cut.
    """

    index: int
    dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """How a module is split.

    Attributes:
        parts: By the path of a part of the module; ``*`` stands for every index.
        splits_text: Whether the encoder's hidden states are cut, too: then cross-attention goes over the ranks.
        blocks: Further hooks that a plan needs which names alone do not describe.
    """

    parts: Mapping[str, Sequence[SplitInput | SplitOutput | GatherOutput]]
    splits_text: bool
    blocks: Callable[[torch.nn.Module], list[RemovableHandle]] | None = None


def apply_plan(module: torch.nn.Module, plan: SplitPlan) -> list[RemovableHandle]:
    """Hooks the module's parts. The hooks do nothing outside of `sharing`.

    Raises:
        ValueError: The plan names a part that the module does not have.
    """
    handles: list[RemovableHandle] = []
    for path, rules in plan.parts.items():
        for part in _parts(module, path):
            handles += _hook(part, rules)
    if plan.blocks is not None:
        handles += plan.blocks(module)
    if not plan.splits_text:
        handles += _mark_cross_attention(module)
    return handles


def parameter_names(module: torch.nn.Module) -> tuple[str, ...]:
    """Of its forward."""
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


def _parts(module: torch.nn.Module, path: str) -> list[torch.nn.Module]:
    parts = [module]
    for name in path.split(".") if path else ():
        if name == "*":
            parts = [child for part in parts for child in part.children()]
        else:
            parts = [getattr(part, name, None) or _child(part, name, path) for part in parts]
    return parts


def _child(part: torch.nn.Module, name: str, path: str) -> torch.nn.Module:
    child = dict(part.named_children()).get(name)
    if child is None:
        raise ValueError(f"{type(part).__name__} has no part {name!r} of the plan's {path!r}")
    return child


def _hook(part: torch.nn.Module, rules: Sequence[SplitInput | SplitOutput | GatherOutput]) -> list[RemovableHandle]:
    names = parameter_names(part)
    inputs = [rule for rule in rules if isinstance(rule, SplitInput)]
    outputs = [rule for rule in rules if not isinstance(rule, SplitInput)]

    def before(_part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        share = current_share()
        if share is None:
            return args, kwargs
        given = [*args]
        for rule in inputs:
            index = names.index(rule.name) if rule.name in names else len(given)
            if rule.name in kwargs:
                kwargs[rule.name] = _taken(share, kwargs[rule.name], rule)
            elif index < len(given):
                given[index] = _taken(share, given[index], rule)
        return tuple(given), kwargs

    def after(_part: Any, _args: Any, output: Any) -> Any:
        share = current_share()
        if share is None:
            return output
        single = isinstance(output, Tensor)
        values: list[Any] = [output] if single else list(cast("Sequence[Any]", output))
        for rule in outputs:
            if isinstance(rule, SplitOutput):
                values[rule.index] = _taken(share, values[rule.index], rule)
            else:
                values[rule.index] = share.gather(values[rule.index], rule.dim)
                share.is_split = False
        return values[0] if single else tuple(values)

    handles: list[RemovableHandle] = []
    if inputs:
        handles.append(part.register_forward_pre_hook(before, with_kwargs=True))
    if outputs:
        handles.append(part.register_forward_hook(after))
    return handles


def _taken(share: Share, value: Any, rule: SplitInput | SplitOutput) -> Any:
    if not isinstance(value, Tensor) or (rule.num_dims is not None and value.ndim != rule.num_dims):
        return value
    share.is_split = True
    return share.take(value, rule.dim)


def _mark_cross_attention(module: torch.nn.Module) -> list[RemovableHandle]:
    """Says of each attention part, while it runs, whether its keys come from elsewhere: every rank has those whole."""
    handles: list[RemovableHandle] = []
    for part in module.modules():
        if not hasattr(part, "processor"):
            continue
        names = parameter_names(part)
        if "encoder_hidden_states" not in names:
            continue
        index = names.index("encoder_hidden_states")

        def is_cross(args: Any, kwargs: Any, index: int = index) -> bool:
            given = args[index] if len(args) > index else kwargs.get("encoder_hidden_states")
            return given is not None

        def before(_part: Any, args: Any, kwargs: Any, is_cross: Any = is_cross) -> None:
            share = current_share()
            if share is not None and is_cross(args, kwargs):
                share.cross_depth += 1

        def after(_part: Any, args: Any, kwargs: Any, _output: Any, is_cross: Any = is_cross) -> None:
            share = current_share()
            if share is not None and is_cross(args, kwargs):
                share.cross_depth -= 1

        handles.append(part.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(part.register_forward_hook(after, with_kwargs=True))
    return handles
