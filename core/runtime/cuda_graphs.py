"""Calls recorded as CUDA graphs: a replay starts hundreds of kernels by one call of the host."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Makes a call repeatable: the result does on the device what the argument does, with the same tensors."""


def has_kernels(device: torch.device) -> bool:
    """Whether this project's Triton kernels run on this device."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def capture_cuda_graph(device: torch.device) -> Capture:
    """Records calls as CUDA graphs that share their memory: one runs at a time.

    Record the largest first: the memory of the others is then part of its.
    """
    pool: list[Any] = []

    def capture(call: Callable[[], None]) -> Callable[[], None]:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # ships no types
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            call()  # kernels compile and libraries make their workspaces outside of the graph
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool[0] if pool else None):
            call()
        pool.append(graph.pool())
        return graph.replay

    return capture
