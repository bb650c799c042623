"""Lets a pipeline go on from one call of its module to the next, so that both branches of guidance are computed together.

Pipelines that call their module twice a step, once for each branch, wait for the first answer before they ask for the
second, though they use neither before both are there. Here the first call returns a stand-in for its answer. The call is
computed when the answer is touched, and together with the calls that came meanwhile if they may share a forward. A pipeline
that touches it at once is as it was.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from sixfold.core.rendezvous.calls import ModuleCall
from sixfold.core.rendezvous.merge import merge, split
from sixfold.core.rendezvous.streams import rebuilt

_MOST_DEFERRED = 4


class DeferredCalls:
    """The calls of one pipeline that nobody has needed yet. Owner: the pipeline's thread.

    Args:
        compute: Computes a call now.
    """

    def __init__(self, compute: Callable[[ModuleCall], Any]) -> None:
        self._compute = compute
        self._waiting: list[tuple[ModuleCall, DeferredAnswer]] = []

    def add(self, call: ModuleCall) -> Any:
        """A stand-in for the tuple that the call returns."""
        if len(self._waiting) == _MOST_DEFERRED:
            self.compute()
        answer = DeferredAnswer(self)
        self._waiting.append((call, answer))
        return answer

    def compute(self) -> None:
        """Computes what waits; calls with one key in one forward."""
        waiting, self._waiting = self._waiting, []
        while waiting:
            key = waiting[0][0].key
            together = [each for each in waiting if each[0].key == key]
            waiting = [each for each in waiting if each[0].key != key]
            calls = [call for call, _ in together]
            for (_, answer), value in zip(together, split(self._compute(_joined(calls)), calls), strict=True):
                object.__setattr__(answer, "_value", value)


def _joined(calls: Sequence[ModuleCall]) -> ModuleCall:
    if len(calls) == 1:
        return calls[0]
    return dataclasses.replace(
        calls[0],
        arguments=merge(calls),
        rows=sum(call.rows for call in calls),
        units=sum(call.units for call in calls),
    )


class DeferredAnswer:
    """Looks like the tuple that a module returns without ``return_dict``; its first entry is deferred, too."""

    _calls: DeferredCalls
    _value: Any

    def __init__(self, calls: DeferredCalls) -> None:
        object.__setattr__(self, "_calls", calls)
        object.__setattr__(self, "_value", None)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        """isinstance must see a tuple."""
        return tuple

    def value(self) -> tuple[Any, ...]:
        """The answer; computed now if it was not yet."""
        if self._value is None:
            self._calls.compute()
        return cast("tuple[Any, ...]", self._value)

    def __getitem__(self, index: Any) -> Any:
        if self._value is None and index == 0:
            return DeferredTensor(self)
        return self.value()[index]

    def __len__(self) -> int:
        return len(self.value())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value())


class DeferredTensor:
    """Looks like the tensor that it will be: whatever is asked of it, is asked of that one.

    Args:
        answer: Whose first entry it is.
    """

    __slots__ = ("_answer",)
    _answer: DeferredAnswer

    def computed(self) -> torch.Tensor:
        """The tensor; computed now if it was not yet."""
        return cast(torch.Tensor, self._answer.value()[0])

    def __init__(self, answer: DeferredAnswer) -> None:
        object.__setattr__(self, "_answer", answer)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        """isinstance must see a tensor."""
        return torch.Tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch's functions and by operators of other tensors."""
        return func(*_computed(tuple(args)), **_computed(dict(kwargs or {})))

    def __getattr__(self, name: str) -> Any:
        return getattr(_computed(self), name)

    def __len__(self) -> int:
        return len(_computed(self))

    def __iter__(self) -> Iterator[Any]:
        return iter(_computed(self))

    def __float__(self) -> float:
        return float(_computed(self))

    def __bool__(self) -> bool:
        return bool(_computed(self))


def _computed(value: Any) -> Any:
    """The same with tensors in place of what stands for them."""
    if type(value) is DeferredTensor:
        return value.computed()
    if type(value) is dict:
        items = cast("dict[str, Any]", value)
        return {key: _computed(items[key]) for key in items}
    if type(value) in (list, tuple):
        return rebuilt(value, (_computed(each) for each in cast("Sequence[Any]", value)))
    return value


def _forwarded(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: DeferredTensor, *args: Any) -> Any:
        return function(_computed(self), *_computed(args))

    return method


def _reflected(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def method(self: DeferredTensor, other: Any) -> Any:
        return function(_computed(other), _computed(self))

    return method


# Python looks operators up on the class, never through __getattr__.
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(DeferredTensor, f"__{_name}__", _forwarded(getattr(operator, _name)))
    setattr(DeferredTensor, f"__r{_name}__", _reflected(getattr(operator, _name)))
for _name in ("neg", "abs", "getitem", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(DeferredTensor, f"__{_name}__", _forwarded(getattr(operator, _name)))
