"""Calls recorded as CUDA graphs: a replay starts hundreds of kernels by one call of the host."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from typing import Any, cast

import torch

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Makes a call repeatable: the result does on the device what the argument does, with the same tensors."""


def has_kernels(device: torch.device) -> bool:
    """Whether this project's Triton kernels run on this device."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def capture_cuda_graph(device: torch.device) -> Capture:
    """Records calls as CUDA graphs that share their memory: one runs at a time, and what it made holds until the next.

    Record the largest first: the memory of the others is then part of its.
    """
    cuda: Any = torch.cuda  # ships no types
    pool = cuda.graph_pool_handle()
    # One for all: memory is shared by recordings of one stream, and libraries make a workspace for each.
    stream = cuda.Stream(device)

    def capture(call: Callable[[], None]) -> Callable[[], None]:
        current = cuda.current_stream(device)
        stream.wait_stream(current)
        graph = cuda.CUDAGraph()
        # Around both: a recording that fails leaves torch's stream the current one, and it waits for the current device.
        with cuda.stream(stream):
            call()  # kernels compile and libraries make their workspaces outside of the graph
            current.wait_stream(stream)
            # Other threads encode and decode meanwhile, on streams of their own.
            try:
                with cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    call()
            except BaseException:
                _end_allocating(device, pool)
                raise
        return cast("Callable[[], None]", graph.replay)

    return capture


def _end_allocating(device: torch.device, pool: Any) -> None:
    """Tells the device's allocator that a recording which failed is over, as torch does since pytorch#180395.

    Else it would never give out again what was used in two streams: it keeps that as long as anything is recorded.
    """
    untyped: Any = torch  # ships no types for these
    index: int | None = untyped.device(device).index
    end = getattr(untyped._C, "_cuda_endAllocateToPool", None)
    if end is None:
        return
    with contextlib.suppress(RuntimeError):  # it is over already
        end(untyped.cuda.current_device() if index is None else index, pool)
