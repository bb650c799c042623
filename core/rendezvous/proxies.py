"""Stand-ins for the parts of a pipeline, one set per request: they park, leave or lock where the part would compute.

A stand-in looks like the part to the pipeline's own code: attributes, ``isinstance`` and ``len`` see the part.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Generator, Hashable, Mapping
from concurrent.futures import Future
from typing import Any

import torch

from sixfold.core.batching.parked import PipelineSide
from sixfold.core.rendezvous.adapters import Adapters, AdapterSwitch
from sixfold.core.rendezvous.calls import CallOwner, CallRules, ModuleCall, TensorDigests, capture
from sixfold.core.rendezvous.deferred import DeferredCalls
from sixfold.core.rendezvous.lane import Lane

_PADDING = frozenset({"padding_side", "pad_token", "pad_token_id"})


def _is_already(part: torch.nn.Module, wanted: Any) -> bool:
    """Whether a module has the type, or is on the device, that ``to`` is called with."""
    own = next(part.parameters(), None)
    if own is None or isinstance(wanted, bool) or not isinstance(wanted, torch.dtype | torch.device | str | int):
        return True  # how to copy, not what
    if isinstance(wanted, torch.dtype):
        return wanted == getattr(part, "dtype", own.dtype)
    device = torch.device(wanted)
    return device.type == own.device.type and device.index in (None, own.device.index)


class StandIn:
    """A transparent proxy. Its own state is in the slots, everything else is the part's.

    Args:
        part: What it stands for.
    """

    __slots__ = ("_part",)
    _part: Any

    def __init__(self, part: Any) -> None:
        object.__setattr__(self, "_part", part)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        """That of the part: isinstance must see it."""
        return self._part.__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As the part's, where it changes nothing: others compute with it at this moment, and in streams of their own.

        Raises:
            AttributeError: It is to have another type or device.
        """
        if isinstance(self._part, torch.nn.Module):
            if all(_is_already(self._part, wanted) for wanted in (*args, *kwargs.values())):
                return self
            raise AttributeError(f"a request must not change the shared {type(self._part).__name__} (to)")
        return self._part.to(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a request must not change the shared {type(self._part).__name__} ({name})")

    def __len__(self) -> int:
        return len(self._part)


class BatchedModule(StandIn):
    """Stands for a module whose calls share forwards: a call parks the pipeline.

    Args:
        part: The module.
        side: Of the request's pipeline.
        rules: Of its calls.
        variant: See `capture`.
        owner: Whose calls they are.
        adapters: With which the module is to run.
        deferred: Where calls wait for the next one of the pipeline; None computes each when it comes.
    """

    __slots__ = ("_adapters", "_context", "_deferred", "_digests", "_owner", "_rules", "_side", "_variant")
    _side: PipelineSide[ModuleCall, Any]
    _rules: CallRules
    _digests: TensorDigests
    _variant: Hashable
    _owner: CallOwner | None
    _context: str | None
    _adapters: Adapters
    _deferred: DeferredCalls | None

    def __init__(
        self,
        part: torch.nn.Module,
        side: PipelineSide[ModuleCall, Any],
        rules: CallRules,
        digests: TensorDigests,
        *,
        variant: Hashable = None,
        owner: CallOwner | None = None,
        adapters: Adapters = (),
        deferred: DeferredCalls | None = None,
    ) -> None:
        super().__init__(part)
        values = {
            "_deferred": deferred,
            "_side": side,
            "_rules": rules,
            "_digests": digests,
            "_variant": variant,
            "_owner": owner,
            "_context": None,
            "_adapters": adapters,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Parks the pipeline until the call was computed, alone or together with others."""
        call = capture(
            self._part,
            args,
            kwargs,
            rules=self._rules,
            digests=self._digests,
            variant=self._variant,
            owner=self._owner,
            context=self._context,
            adapters=self._adapters,
        )
        if self._deferred is not None and kwargs.get("return_dict") is False:
            return self._deferred.add(call)
        return self._side.call(call)

    @contextlib.contextmanager
    def cache_context(self, name: str, *_: Any, **__: Any) -> Generator[None]:
        """The pipeline's name for the calls inside, such as one of the two of guidance; caches are kept apart by it."""
        object.__setattr__(self, "_context", name)
        try:
            yield
        finally:
            object.__setattr__(self, "_context", None)


class LaneModule(StandIn):
    """Stands for a module some of whose methods run in a lane: the pipeline leaves, so that the steps go on.

    Args:
        part: The module.
        side: Of the request's pipeline.
        lane: Computes the calls.
        methods: With the rules of their calls.
    """

    __slots__ = ("_digests", "_lane", "_methods", "_side", "_variant")
    _side: PipelineSide[ModuleCall, Any]
    _lane: Lane
    _digests: TensorDigests
    _methods: Mapping[str, CallRules]
    _variant: Hashable

    def __init__(
        self,
        part: torch.nn.Module,
        side: PipelineSide[ModuleCall, Any],
        lane: Lane,
        digests: TensorDigests,
        methods: Mapping[str, CallRules],
        *,
        variant: Hashable = None,
    ) -> None:
        super().__init__(part)
        values = {
            "_side": side,
            "_lane": lane,
            "_digests": digests,
            "_methods": methods,
            "_variant": variant,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        if name in self._methods:
            return functools.partial(self._run_in_lane, name, value)
        return value

    def start(self, method: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """Lets the lane compute a method while the pipeline goes on; for previews."""
        return self._submit(method, getattr(self._part, method), args, kwargs)

    def _submit(self, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Future[Any]:
        rules = self._methods[name]
        call = capture(method, args, kwargs, rules=rules, digests=self._digests, variant=self._variant)
        return self._lane.submit(call)

    def _run_in_lane(self, name: str, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._side.leave()
        answer = self._submit(name, method, args, kwargs).result()
        self._side.check()
        return answer


class AdaptedModule(StandIn):
    """Stands for a module that each pipeline calls by itself and that has adapters, such as a text encoder's.

    Args:
        part: The module.
        switch: Of its adapters.
        adapters: With which it is to run.
    """

    __slots__ = ("_adapters", "_switch")
    _switch: AdapterSwitch
    _adapters: Adapters

    def __init__(self, part: torch.nn.Module, switch: AdapterSwitch, adapters: Adapters) -> None:
        super().__init__(part)
        object.__setattr__(self, "_switch", switch)
        object.__setattr__(self, "_adapters", adapters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the call here and now."""
        with self._switch.using(self._adapters):
            return self._part(*args, **kwargs)


class KeptModule(StandIn):
    """Stands for a module that a pipeline moves around each use: another may use it at this moment, so it stays."""

    __slots__ = ()

    def to(self, *_: Any, **__: Any) -> Any:
        """Itself, unmoved."""
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the call here and now."""
        return self._part(*args, **kwargs)


class LockedPart(StandIn):
    """Stands for a part that is not safe to use in several threads at once: fast tokenizers keep padding as state.

    Args:
        part: The part.
        lock: Of the part, shared by all its stand-ins.
    """

    __slots__ = ("_lock",)
    _lock: threading.RLock

    def __init__(self, part: Any, lock: threading.RLock) -> None:
        super().__init__(part)
        object.__setattr__(self, "_lock", lock)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        if not callable(value) or isinstance(value, type):
            return value
        if not inspect.isroutine(value):  # a processor's tokenizer
            return LockedPart(value, self._lock)

        def locked(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return value(*args, **kwargs)

        return locked

    def __setattr__(self, name: str, value: Any) -> None:
        """How to pad a pipeline says before it calls a tokenizer, and each time the same.

        Raises:
            AttributeError: It is to change in another way.
        """
        if name not in _PADDING:
            super().__setattr__(name, value)
        with self._lock:
            setattr(self._part, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the part when no other thread does."""
        with self._lock:
            return self._part(*args, **kwargs)
