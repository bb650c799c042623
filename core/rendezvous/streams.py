"""Hands tensors from one CUDA stream to another, and keeps the host near the device."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from sixfold.core.runtime.events import recorded_event

MAX_THREAD_STREAMS = 16
"""Most threads with a stream of their own: for each the allocator keeps what a text encoder once needed, and cuBLAS 32 MiB."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers, and those that objects in them hold themselves."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in cast("Mapping[str, Any]", value).values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in cast("list[Any]", value):
            yield from tensors_in(item)
    else:
        yield from attribute_tensors(value)


def attribute_tensors(value: Any) -> list[Tensor]:
    """Those that an object of a library holds, such as the distribution that an autoencoder encodes to."""
    return [item for item in getattr(value, "__dict__", {}).values() if isinstance(item, Tensor)]


def new_stream(device: torch.device, *, priority: int = 0) -> Any:
    """A CUDA stream of its own: torch has 32 for each priority and device, and begins anew after them.

    Args:
        device: A GPU.
        priority: Work of -1 goes before that of 0.
    """
    stream: Any = torch.cuda.Stream
    return stream(device, priority=priority)


def current_stream(device: torch.device) -> Any:
    """That of the calling thread; None on other devices than CUDA."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


class ThreadStreams:
    """A CUDA stream for each of `MAX_THREAD_STREAMS` threads that compute little, and that someone waits for.

    A thread has its stream for life: libraries keep a workspace for each pair of them, which must not become all pairs.
    Threads for which none is left are in the steps' stream. Streams of this priority are never those in which graphs are
    recorded: torch gives out 32 of each priority again and again.

    Args:
        device: On others than CUDA there are none.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._local = threading.local()
        self._lock = threading.Lock()
        self._free: list[Any] = []
        self._num_made = 0

    def use(self) -> None:
        """Makes the calling thread's stream its current one."""
        if self._device.type != "cuda":
            return
        place = getattr(self._local, "place", None)
        if place is None:
            place = self._local.place = self._place()
        torch.cuda.set_stream(self._steps_stream() if place is None else place.stream)

    def _place(self) -> _Place | None:
        with self._lock:
            if self._free:
                stream = self._free.pop()
            elif self._num_made < MAX_THREAD_STREAMS:
                self._num_made += 1
                stream = new_stream(self._device, priority=-1)
                stream.wait_stream(self._steps_stream())  # the model was loaded in it
            else:
                return None
        place = _Place(stream)
        weakref.finalize(place, self._free.append, stream).atexit = False  # when its thread ends
        return place

    def _steps_stream(self) -> Any:
        return torch.cuda.default_stream(self._device)


class _Place:
    """A thread's hold on a stream."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream


def rebuilt(like: Any, items: Iterable[Any]) -> Any:
    """A list or tuple of the same kind."""
    return like.__class__(items)


def recreated(like: Any, items: dict[str, Any]) -> Any:
    """A mapping of the same kind, such as a library's class of outputs."""
    return like.__class__(**items)


def hand_over(value: Any, *, source: Any, target: Any, wait: bool = True) -> None:
    """Makes the tensors of one stream safe to use in another.

    Args:
        value: Containers of tensors.
        source: Their stream; None, or the target itself, needs nothing.
        target: Where they will be used; their memory is not given out again before that is done.
        wait: Whether the target must wait until they are computed.
    """
    if source is None or target is None or source == target:
        return
    if wait:
        target.wait_stream(source)
    for tensor in tensors_in(value):
        if tensor.is_cuda:
            tensor.record_stream(target)


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Pace:
    """Keeps the host at most one forward ahead of the device: the next step's work is laid out while this one is computed,
    but who arrives need not wait for a queue of steps that nobody can leave, and the time of a step is the device's.

    Args:
        device: On others than CUDA nothing is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: Any = None
        self._last_but_one: Any = None

    def wait(self) -> None:
        """Before a forward: until the one before the last is done."""
        if self._last_but_one is not None:
            self._last_but_one.synchronize()

    def mark(self) -> None:
        """After a forward was given to the device."""
        if self._device.type == "cuda":
            self._last_but_one, self._last = self._last, recorded_event(self._device)
