"""Computes what pipelines encode before their first step: prompts, and pictures to start from.

On a GPU a text encoder is thousands of small kernels that the host starts one by one. In several pipelines' threads at once
each start waits for the others' turn of the interpreter: four prompts together then take longer than one after another. So
one thread encodes, on a stream of its own, and calls whose shapes were seen while the model warmed up are CUDA graphs, which
one call of the host starts. On a CPU kernels take longer than their starts, and pipelines encode in their own threads.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sixfold.core.rendezvous.comparison import max_difference
from sixfold.core.rendezvous.memory import free_memory, is_out_of_memory
from sixfold.core.rendezvous.streams import copied, hand_over, new_stream
from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.core.runtime.devices import use_device

_log = logging.getLogger(__name__)

_MAX_GRAPHS = 32  # a pipeline has few encoders, and a warm-up few shapes


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a module or of a method of one.

    Attributes:
        function: What is called.
        args: By place.
        kwargs: By name.
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def tensors(self) -> list[Tensor]:
        """Those among the arguments, in an order that is the same for calls of one key."""
        values = [*self.args, *(self.kwargs[name] for name in sorted(self.kwargs))]
        return [value for value in values if isinstance(value, Tensor)]

    def key(self, device: torch.device) -> Hashable | None:
        """Equal for calls that one recording computes; None where an argument has no fixed place on the device."""
        spec: list[Hashable] = []
        for name, value in [*enumerate(self.args), *((name, self.kwargs[name]) for name in sorted(self.kwargs))]:
            if isinstance(value, Tensor):
                if value.device.type != device.type:
                    return None
                spec.append((name, tuple(value.shape), value.dtype))
            elif value is None or isinstance(value, bool | int | float | str):
                spec.append((name, type(value), value))
            else:
                return None
        owner = getattr(self.function, "__self__", self.function)
        return (owner, getattr(self.function, "__name__", "forward"), *spec) if self.tensors() else None

    def with_tensors(self, tensors: Sequence[Tensor]) -> _Call:
        """The same call with others in place of `tensors`."""
        left = iter(tensors)
        places = {id(own): other for own, other in zip(self.tensors(), left, strict=True)}

        def replaced(value: Any) -> Any:
            return places[id(value)] if isinstance(value, Tensor) else value

        return _Call(
            self.function,
            [replaced(value) for value in self.args],
            {name: replaced(value) for name, value in self.kwargs.items()},
        )

    def compute(self) -> Any:
        return self.function(*self.args, **self.kwargs)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A call at fixed places.

    Attributes:
        places: Where it reads its tensors.
        replay: Computes `answer`.
        answer: Where it writes; holds until any graph of the same memory runs.
    """

    places: Sequence[Tensor]
    replay: Callable[[], None]
    answer: Any

    def run(self, tensors: Sequence[Tensor]) -> Any:
        for place, tensor in zip(self.places, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        self.replay()
        return copied(self.answer)


class Encoders:
    """See the module. Thread-safe.

    Args:
        device: Where the modules are.
        capture: Records calls; None computes all of them.
    """

    def __init__(self, device: torch.device, capture: Capture | None = None) -> None:
        self._device = device
        self._capture = capture
        self._thread: ThreadPoolExecutor | None = None
        self._stream: Any = None
        if device.type == "cuda" or capture is not None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode", initializer=self._begin)
        # Owner: the thread.
        self._graphs: dict[Hashable, _Recorded] = {}
        self._refused: set[Hashable] = set()
        self._records = False
        self.num_replays = 0

    @property
    def num_recorded(self) -> int:
        """Graphs that are kept. [any thread]"""
        return len(self._graphs)

    @contextlib.contextmanager
    def recording(self) -> Generator[None]:
        """Calls inside are recorded. For warm-ups: nothing else may compute on the device meanwhile."""
        self._records = True
        try:
            yield
        finally:
            self._records = False

    def compute(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, as_is: bool = False
    ) -> Any:
        """Computes a call and returns when it is done. [any thread]

        Args:
            function: A module, or a method of one.
            args: Ready on the caller's current stream.
            kwargs: Likewise.
            as_is: The module has changed since it was recorded, or shall compute in any case.
        """
        call = _Call(function, args, kwargs)
        if self._thread is None:
            return call.compute()
        source = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        return self._thread.submit(self._compute, call, source, as_is).result()

    def close(self) -> None:
        """Ends the thread after what it computes."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        torch.set_num_threads(1)
        use_device(str(self._device))
        if self._device.type == "cuda":
            self._stream = new_stream(self._device)

    @torch.no_grad()
    def _compute(self, call: _Call, source: Any, as_is: bool) -> Any:
        if self._stream is None:
            return self._answer(call, as_is)
        hand_over((call.args, call.kwargs), source=source, target=self._stream)
        with torch.cuda.stream(self._stream):
            answer = self._answer(call, as_is)
        self._stream.synchronize()  # of this thread alone: the steps go on
        hand_over(answer, source=self._stream, target=source, wait=False)
        return answer

    def _answer(self, call: _Call, as_is: bool) -> Any:
        key = None if as_is or self._capture is None else call.key(self._device)
        if key is not None and key not in self._graphs and self._records:
            self._record(key, call)
        recorded = None if key is None else self._graphs.get(key)
        if recorded is None:
            return call.compute()
        self.num_replays += 1
        return recorded.run(call.tensors())

    def _record(self, key: Hashable, call: _Call) -> None:
        """Keeps a recording that gives what the module gives; else says why there is none, once."""
        if key in self._refused or len(self._graphs) >= _MAX_GRAPHS:
            return
        try:
            self._graphs[key] = self._checked(call)
        except Exception as error:  # the border between the core and a model's code
            self._refused.add(key)
            owner = getattr(call.function, "__self__", call.function)
            _log.warning("%s can't be recorded as a CUDA graph: %s", type(owner).__name__, error)
            if is_out_of_memory(error):
                free_memory(error, self._device)

    def _checked(self, call: _Call) -> _Recorded:
        """A recording that gives what the module gives, for these arguments and for others.

        Raises:
            ValueError: It gives something else.
        """
        assert self._capture is not None
        tensors = call.tensors()
        places = [tensor.clone() for tensor in tensors]
        placed = call.with_tensors(places)
        found: list[Any] = []

        def compute() -> None:
            found[:] = [placed.compute()]

        replay = self._capture(compute)
        if not _is_plain(found[0]):
            raise ValueError(f"its answer, {type(found[0]).__name__}, holds more than tensors")
        recorded = _Recorded(places, replay, found[0])
        others = [tensor.flip(-1) if tensor.ndim else tensor for tensor in tensors]
        for given in (tensors, others):
            difference = max_difference([call.with_tensors(given).compute()], [recorded.run(given)])
            if difference > 1.0:
                raise ValueError(f"replayed, it gives something else ({difference:.1e} of what rounding may do)")
        return recorded


def _is_plain(answer: Any) -> bool:
    """Whether all that it holds can be copied."""
    if isinstance(answer, Mapping):
        return all(_is_plain(item) for item in cast("Mapping[str, Any]", answer).values())
    if isinstance(answer, list | tuple):
        return all(_is_plain(item) for item in cast("Sequence[Any]", answer))
    return answer is None or isinstance(answer, Tensor | bool | int | float | str)
