"""Hands tensors from one CUDA stream to another, and keeps the host near the device."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from sixfold.core.runtime.events import recorded_event

_MAX_THREAD_STREAMS = 16


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in cast("Mapping[str, Any]", value).values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in cast("list[Any]", value):
            yield from tensors_in(item)


def new_stream(device: torch.device, *, priority: int = 0) -> Any:
    """A CUDA stream of its own: torch has 32 for each priority and device, and begins anew after them.

    Args:
        device: A GPU.
        priority: -1 is before all others.
    """
    stream: Any = torch.cuda.Stream
    return stream(device, priority=priority)


def current_stream(device: torch.device) -> Any:
    """That of the calling thread; None on other devices than CUDA."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


class ThreadStreams:
    """CUDA streams of threads that compute little, and that someone waits for. They go before the steps.

    Threads must be few and live long: a stream's memory is kept for it, and so is a workspace of the libraries for each
    thread in each stream. From the seventeenth thread on two share a stream; no recording of a graph is ever in one.

    Args:
        device: On others than CUDA there are none.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._local = threading.local()
        self._lock = threading.Lock()
        self._streams: list[Any] = []
        self._num_threads = 0

    def use(self) -> None:
        """Makes the calling thread's stream its current one; the same each time."""
        if self._device.type != "cuda":
            return
        if not hasattr(self._local, "stream"):
            with self._lock:
                if len(self._streams) < _MAX_THREAD_STREAMS:
                    self._streams.append(new_stream(self._device, priority=-1))
                self._local.stream = self._streams[self._num_threads % _MAX_THREAD_STREAMS]
                self._num_threads += 1
        torch.cuda.set_stream(self._local.stream)


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
