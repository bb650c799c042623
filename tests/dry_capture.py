"""Says without a GPU what a CUDA graph could not record: copies between host and device, and questions to the device.

Modules and tensors lie on torch's meta device, which stands for the GPU: it has no values that a question could be answered
with, and every other tensor is the host's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

_library: Any = torch  # these have no types
_tree: Any = _pytree
_FunctionMode: Any = TorchFunctionMode
_DispatchMode: Any = TorchDispatchMode

_FROM_THE_HOST = {
    _library.tensor,
    _library.as_tensor,
    _library.asarray,
    _library.from_numpy,
    _library.Tensor.new_tensor,
}
_INDEXING = {_library.Tensor.__getitem__, _library.Tensor.__setitem__}
_ASKS_ITS_VALUE = ("aten.masked_fill.Tensor", "aten.masked_fill_.Tensor")
_ASKS_BOOLEANS = ("aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default")


class _Functions(_FunctionMode):  # type: ignore[misc]  # without types
    """Finds numbers of the host: how they become a tensor is hidden from the operations below."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FROM_THE_HOST:
            raise AssertionError(f"{func.__name__}: a tensor is made of numbers of the host")
        if func in _INDEXING:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(part, list) for part in parts), "a list of the host is an index"
        return func(*args, **(kwargs or {}))


class _Operations(_DispatchMode):  # type: ignore[misc]  # without types
    """Finds tensors of the host, and operations of a GPU that ask it for values before they start."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [each for each in _tree.tree_leaves((args, kwargs, found)) if isinstance(each, Tensor)]
        assert all(each.device.type == "meta" for each in tensors), f"{func}: a tensor is on the host"
        asks = str(func) in _ASKS_ITS_VALUE
        if str(func) in _ASKS_BOOLEANS:
            asks = any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])
        assert not asks, f"{func}: the device is asked for a value"
        return found


@contextmanager
def dry_recording() -> Generator[None]:
    """Raises AssertionError at what a CUDA graph could not record; libraries believe that one is recorded."""
    with mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: True), _Functions(), _Operations():
        try:
            yield
        except RuntimeError as error:  # such as a tensor of the meta device that is asked for its value
            raise AssertionError(f"the device is asked for a value: {error}") from error


def dry_capture(call: Callable[[], None]) -> Callable[[], None]:
    """In place of `capture_cuda_graph`; no RuntimeError comes out, since those who record compute what they can't record."""
    try:
        call()  # as before every recording
    except RuntimeError as error:  # as in `dry_recording`
        raise AssertionError(f"the device is asked for a value: {error}") from error
    with dry_recording():
        call()
    return call
