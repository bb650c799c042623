"""Puts the rows of several calls into one call, and takes its answer apart again."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sixfold.core.rendezvous.calls import CallRules, ModuleCall, has_rows, is_row_list
from sixfold.core.rendezvous.streams import rebuilt, recreated

_WITHOUT_ROWS = (str, bytes, bool, int, float, complex, enum.Enum, torch.dtype, torch.device)


def merge(calls: Sequence[ModuleCall]) -> dict[str, Any]:
    """The arguments of one call for all rows, in order. The calls' keys are equal; a single call's stay as they are."""
    if len(calls) == 1:
        return dict(calls[0].arguments)
    first = next(iter(calls[0].arguments))
    merger = _Merger(calls[0].rules, [call.rows for call in calls], first)
    return {name: merger.merge(name, [call.arguments[name] for call in calls]) for name in calls[0].arguments}


class _Merger:
    def __init__(self, rules: CallRules, rows: list[int], first: str) -> None:
        self._rules = rules
        self._rows = rows
        self._first = first

    def merge(self, name: str, values: Sequence[Any]) -> Any:
        value = values[0]
        if name in self._rules.ignored:
            return value
        if isinstance(value, Tensor):
            return torch.cat(list(values)) if has_rows(name, value, self._rules, self._rows[0]) else value
        if isinstance(value, Mapping):
            keys = cast("Mapping[str, Any]", value)
            return {key: self.merge(key, [each[key] for each in values]) for key in keys}
        if isinstance(value, list | tuple):
            items = cast("Sequence[Any]", value)
            if is_row_list(name, items, self._rules, self._first):
                return list(itertools.chain.from_iterable(values))
            return rebuilt(value, (self.merge(name, [each[index] for each in values]) for index in range(len(items))))
        return value


def row_parts(arguments: Mapping[str, Any], call: ModuleCall, num_parts: int) -> list[dict[str, Any] | None]:
    """Cuts merged arguments into shares of their rows; None for a share without rows. The first always has some.

    Args:
        arguments: Of `merge`.
        call: One of the merged calls; its own arguments tell which of theirs have rows.
        num_parts: Shares.
    """
    first = next(iter(call.arguments))
    num_rows = len(arguments[first])
    if num_parts == 1:
        return [dict(arguments)]
    ends = [-(-num_rows * (index + 1) // num_parts) for index in range(num_parts)]  # the first get the rows more
    cutter = _Cutter(call.rules, call.rows, first)
    own = call.arguments
    return [
        {name: cutter.cut(name, arguments[name], own[name], start, stop) for name in arguments}
        if stop > start
        else None
        for start, stop in zip([0, *ends], ends, strict=False)
    ]


class _Cutter:
    """Takes rows out of merged arguments.

    Args:
        rules: Of the calls.
        rows: Of one of the calls, whose own arguments `cut` gets beside the merged ones: these may have as many rows by
            chance.
        first: Name of the first argument.
    """

    def __init__(self, rules: CallRules, rows: int, first: str) -> None:
        self._rules = rules
        self._rows = rows
        self._first = first

    def cut(self, name: str, value: Any, own: Any, start: int, stop: int) -> Any:
        if name in self._rules.ignored:
            return value
        if isinstance(value, Tensor):
            return value[start:stop] if has_rows(name, own, self._rules, self._rows) else value
        if isinstance(value, Mapping):
            keys = cast("Mapping[str, Any]", value)
            return {key: self.cut(key, keys[key], own[key], start, stop) for key in keys}
        if isinstance(value, list | tuple):
            items = cast("Sequence[Any]", value)
            if is_row_list(name, items, self._rules, self._first):
                return list(items[start:stop])
            return rebuilt(
                value, (self.cut(name, item, mine, start, stop) for item, mine in zip(items, own, strict=True))
            )
        return value


def join(answers: Sequence[Any]) -> Any:
    """Puts the answers of shares of the rows together again: the reverse of what `split` does."""
    answer = answers[0]
    if len(answers) == 1:
        return answer
    if isinstance(answer, Tensor):
        return torch.cat(list(answers))
    if isinstance(answer, Mapping):
        items = cast("Mapping[str, Any]", answer)
        return recreated(answer, {key: join([each[key] for each in answers]) for key in items})
    if isinstance(answer, list):  # one entry a row
        return list(itertools.chain.from_iterable(answers))
    if isinstance(answer, tuple):
        parts = cast("Sequence[Any]", answer)
        return rebuilt(answer, (join([each[index] for each in answers]) for index in range(len(parts))))
    return answer


def split(answer: Any, calls: Sequence[ModuleCall]) -> list[Any]:
    """The answer's part for each call.

    Args:
        answer: A tensor with rows, a list with one tensor a row (for calls whose first argument is one), or a tuple, list
            or dict of such.
        calls: In the order in which they were merged.

    Raises:
        ValueError: Something in it has not one row for each that went in.
    """
    if len(calls) == 1:
        return [answer]
    total = sum(call.rows for call in calls)
    listed = isinstance(calls[0].main, list | tuple)
    ends = list(itertools.accumulate(call.rows for call in calls))
    return [cut(answer, end - call.rows, end, total, listed=listed) for call, end in zip(calls, ends, strict=True)]


def cut(answer: Any, start: int, stop: int, total: int, *, listed: bool) -> Any:
    """Some rows of an answer.

    Args:
        answer: See `split`.
        start: The first row.
        stop: The one after the last.
        total: Rows that it must have.
        listed: Whether a list in it may have one tensor a row.

    Raises:
        ValueError: Something in it has not that many, or nobody knows how many.
    """
    if isinstance(answer, Tensor):
        if answer.ndim == 0 or answer.shape[0] != total:
            raise ValueError(f"an answer of shape {tuple(answer.shape)} for {total} rows can't be split")
        return answer[start:stop]
    if isinstance(answer, Mapping):  # the output classes of model libraries are dicts
        items = cast("Mapping[str, Any]", answer)
        return recreated(answer, {key: cut(items[key], start, stop, total, listed=listed) for key in items})
    if isinstance(answer, list | tuple):
        parts = cast("Sequence[Any]", answer)
        if listed and isinstance(answer, list) and len(parts) == total:
            return parts[start:stop]
        return rebuilt(answer, (cut(part, start, stop, total, listed=listed) for part in parts))
    if answer is not None and not isinstance(answer, _WITHOUT_ROWS):  # such as a cache
        raise ValueError(f"nobody knows the rows of a {type(answer).__name__}")
    return answer
