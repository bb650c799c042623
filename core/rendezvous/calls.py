"""One call of a module, captured so that it can share a forward: which arguments hold a row for each sample, which do not.

Rows are counted on the module's first argument. Two calls may merge when their keys are equal: the same module and variant,
arguments with rows that agree apart from the number of rows, all other arguments equal by value.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from sixfold.core.rendezvous.adapters import Adapters
from sixfold.core.rendezvous.streams import current_stream, tensors_in


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPadding:
    """Lets calls with texts of different lengths merge: texts are padded, and their padding masked.

    Attributes:
        states: Name of the text argument, [rows, tokens, dim].
        mask: Name of its mask, [rows, tokens], True for a real token; made if the call has none.
        multiple: Lengths are rounded up to a multiple of this; 0 pads nothing.
    """

    states: str
    mask: str
    multiple: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRules:
    """How the calls of a module are read, where the shapes alone do not tell.

    Attributes:
        shared: Arguments without rows, whatever their first size.
        times: Arguments with one value a row, also when they come as one value for all rows.
        row_lists: Lists with one entry a row; what they hold must be equal if it is not a tensor.
        ragged: Lists of tensors with one a row, whose shapes may differ inside a forward.
        ignored: Arguments without effect on the result; those of any call of the forward are passed.
        text_padding: See there.
        merges: Whether the rows of an answer can be told apart; calls without that are computed one by one.
        units_per_row: Work of a row; None counts the positions of its first argument (all but the channels).
    """

    shared: frozenset[str] = frozenset()
    times: frozenset[str] = frozenset({"timestep"})
    row_lists: frozenset[str] = frozenset()
    ragged: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    text_padding: TextPadding | None = None
    merges: bool = True
    units_per_row: Callable[[Tensor], int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOwner:
    """Whose calls they are: one running pipeline.

    Attributes:
        request_id: Of its request.
        index: Of its piece.
        cache_threshold: Of the row cache; None computes everything.
    """

    request_id: str
    index: int = 0
    cache_threshold: float | None = None


class TensorDigests:
    """Digests of tensors without rows, computed once per tensor and request: on a GPU each costs a synchronisation."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, bytes]] = {}

    def digest(self, tensor: Tensor) -> bytes:
        """A digest of the values. The tensor is kept, so that its identity stays its own."""
        version = tensor._version
        known = self._known.get(id(tensor))
        if known is None or known[1] != version:
            data = (
                tensor.detach().contiguous().view(torch.uint8)
                if tensor.ndim
                else tensor.detach().reshape(1).view(torch.uint8)
            )
            value = hashlib.blake2b(data.cpu().numpy().tobytes(), digest_size=16).digest()
            known = self._known[id(tensor)] = (tensor, version, value)
        return known[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCall:
    """A captured call.

    Attributes:
        function: What computes it: a module, or a method of one.
        arguments: By parameter name.
        rows: Rows of the first argument.
        units: Its work.
        key: Equal for calls that may share a forward.
        rules: How the arguments are read.
        owner: Whose it is.
        context: The pipeline's name for a kind of its calls, such as one branch of guidance; caches are kept apart by it.
        adapters: With which the module is to run.
        alone: It shares with no other request and is to be computed by the module as it is.
        stream: The CUDA stream in which its arguments are made and its answer is used; None on other devices.
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    rows: int
    units: int
    key: Hashable
    rules: CallRules
    owner: CallOwner | None = None
    context: str | None = None
    adapters: Adapters = ()
    alone: bool = False
    stream: Any = None

    @property
    def main(self) -> Any:
        """The first argument."""
        return next(iter(self.arguments.values()))


@functools.lru_cache(maxsize=256)
def _parameters(function: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _parameter_names(function: Callable[..., Any]) -> tuple[str, ...]:
    if isinstance(function, torch.nn.Module):
        return _parameters(type(function).forward)[1:]
    bound = getattr(function, "__self__", None)
    # keyed by the plain function: a bound method would keep its module alive
    return _parameters(cast(Any, function).__func__)[1:] if bound is not None else _parameters(function)


def capture(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    rules: CallRules,
    digests: TensorDigests,
    variant: Hashable = None,
    owner: CallOwner | None = None,
    context: str | None = None,
    adapters: Adapters = (),
) -> ModuleCall:
    """Reads a call. On the thread of the pipeline: digests may wait for the device.

    Args:
        function: A module, or a method of one.
        args: As called.
        kwargs: As called.
        rules: How they are read.
        digests: Of the request.
        variant: Must be equal for calls to merge, such as for a request that wants to run alone.
        owner: See `ModuleCall`.
        context: Likewise.
        adapters: Likewise; they must be equal, too.
    """
    names = _parameter_names(function)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    arguments = {name: given.pop(name) for name in names if name in given} | given
    main = next(iter(arguments.values()))
    rows = len(main)
    for name in rules.times:
        if name in arguments:
            arguments[name] = _one_per_row(arguments[name], rows)
    if rules.text_padding is not None and rules.text_padding.multiple:
        _pad_text(arguments, rules.text_padding)
    reader = _Reader(rules, rows, digests, first=next(iter(arguments)))
    spec = tuple((name, reader.spec(name, value)) for name, value in sorted(arguments.items()))
    count = rules.units_per_row or _positions
    listed = isinstance(main, list | tuple)
    units = sum(count(row) for row in cast("Sequence[Tensor]", main)) if listed else rows * count(main[0])
    identity = id(getattr(function, "__self__", function)), getattr(function, "__name__", "forward")
    return ModuleCall(
        function=function,
        arguments=arguments,
        rows=rows,
        units=max(1, units),
        key=(identity, variant, adapters, spec) if rules.merges else object(),
        rules=rules,
        owner=owner,
        context=context,
        adapters=adapters,
        alone=variant is not None,
        stream=next((current_stream(value.device) for value in tensors_in(arguments) if value.is_cuda), None),
    )


def _positions(row: Tensor) -> int:
    """Of [tokens, channels] or [channels, *positions]."""
    return row.shape[0] if row.ndim == 2 else math.prod(row.shape[1:])


def _one_per_row(value: Any, rows: int) -> Any:
    if not isinstance(value, Tensor) or value.ndim > 1 or (value.ndim == 1 and value.shape[0] != 1):
        return value
    return value.reshape(1).expand(rows)


def _pad_text(arguments: dict[str, Any], padding: TextPadding) -> None:
    states = arguments.get(padding.states)
    if not isinstance(states, Tensor):
        return
    num_tokens = states.shape[1]
    missing = -num_tokens % padding.multiple
    mask = arguments.get(padding.mask)
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    arguments[padding.states] = torch.nn.functional.pad(states, (0, 0, 0, missing))
    arguments[padding.mask] = torch.nn.functional.pad(mask.bool(), (0, missing))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Says of each argument whether it has rows, and what of it must be equal."""

    rules: CallRules
    rows: int
    digests: TensorDigests = field(compare=False)
    first: str

    def spec(self, name: str, value: Any) -> Hashable:
        if name in self.rules.ignored:
            return None
        if isinstance(value, Tensor):
            if has_rows(name, value, self.rules, self.rows):
                return ("rows", tuple(value.shape[1:]), value.dtype)
            return ("shared", tuple(value.shape), value.dtype, self.digests.digest(value))
        if isinstance(value, Mapping):
            items = cast("Mapping[str, Any]", value)
            return tuple((key, self.spec(key, items[key])) for key in sorted(items))
        if isinstance(value, list | tuple):
            parts = cast("Sequence[Any]", value)
            if is_row_list(name, parts, self.rules, self.first):
                return self._row_list(name, parts)
            return (type(parts).__name__, tuple(self.spec(name, part) for part in parts))
        return repr(value)

    def _row_list(self, name: str, items: Sequence[Any]) -> Hashable:
        if not all(isinstance(item, Tensor) for item in items):
            return ("entries", tuple(sorted({repr(item) for item in items})))
        if name in self.rules.ragged:
            return ("ragged", items[0].ndim, items[0].dtype)
        return ("list", tuple(dict.fromkeys((tuple(item.shape), item.dtype) for item in items)))


def has_rows(name: str, value: Tensor, rules: CallRules, rows: int) -> bool:
    """Whether a tensor argument holds one row for each of the first argument's."""
    return name not in rules.shared and value.ndim >= 1 and value.shape[0] == rows


def is_row_list(name: str, items: Sequence[Any], rules: CallRules, first: str) -> bool:
    """Whether a list argument holds one entry for each row."""
    return bool(items) and (name == first or name in rules.row_lists or name in rules.ragged)
