"""Arguments and answers on their way between the processes of one replica: a small header, and tensors that follow it.

The header is a pickle: both ends are one program of one user, joined by a socket pair that nobody else can open.
"""

from __future__ import annotations

import io
import pickle
import socket
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

_INLINE_BYTES = 1 << 12
"""A tensor of the host that is no larger travels in the header: for it a message costs more than a copy."""

_MAX_HEADER_BYTES = 1 << 28


def pack(value: Any, device: torch.device) -> tuple[bytes, list[Tensor]]:
    """The header, and the tensors that must follow it, on the device."""
    tensors: list[Tensor] = []
    file = io.BytesIO()

    class Packer(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if not isinstance(obj, Tensor) or (obj.device.type == "cpu" and _is_small(obj, device)):
                return None
            tensors.append(obj.detach().contiguous())
            return (tuple(obj.shape), obj.dtype)

        def reducer_override(self, obj: Any) -> Any:
            # By its values: torch's own way would take the whole storage along, of which it may be a small view.
            if not isinstance(obj, Tensor):
                return NotImplemented
            values = as_bytes(obj.detach().contiguous()).numpy().tobytes()
            return _from_bytes, (values, tuple(obj.shape), obj.dtype)

    Packer(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue(), tensors


def _from_bytes(values: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not values:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).view(dtype).reshape(shape)


def _is_small(tensor: Tensor, device: torch.device) -> bool:
    # A process group of GPUs takes tensors of GPUs only.
    return device.type != "cpu" or tensor.numel() * tensor.element_size() <= _INLINE_BYTES


def unpack(header: bytes, device: torch.device, receive: Callable[[Sequence[Tensor]], None]) -> Any:
    """The value again.

    Args:
        header: Of `pack`.
        device: Where tensors go.
        receive: Fills the tensors that follow, in order; called once.
    """
    tensors: list[Tensor] = []

    class Unpacker(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            shape, dtype = pid
            tensors.append(torch.empty(shape, dtype=dtype, device=device))
            return tensors[-1]

    value = Unpacker(io.BytesIO(header)).load()
    receive(tensors)
    return value


def as_bytes(tensor: Tensor) -> Tensor:
    """The same memory as bytes: every backend sends these, whatever the type."""
    flat = tensor.reshape(-1)
    # One element may have any stride, and a view as bytes wants 1.
    return (flat if flat.numel() != 1 or flat.stride(0) == 1 else flat.new_empty(1).copy_(flat)).view(torch.uint8)


def kind_of(name: str, value: Any) -> Hashable:
    """What a forward's course may depend on: shapes, and values that are no floating-point numbers."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value)
        return (name, tuple((key, kind_of(key, items[key])) for key in sorted(items)))
    if isinstance(value, list | tuple):
        return (name, tuple(kind_of("", each) for each in cast("Sequence[Any]", value)))
    return (name, type(value).__name__) if isinstance(value, float) else (name, repr(value))


def send_message(sock: socket.socket, message: Any) -> None:
    """Sends a header-sized message over a socket pair.

    Raises:
        OSError: The other end is gone, or reads nothing.
    """
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    sock.sendall(len(data).to_bytes(4, "big") + data)


def read_message(sock: socket.socket) -> Any:
    """The next message; None when the other end is gone."""
    head = _read(sock, 4)
    if head is None:
        return None
    size = int.from_bytes(head, "big")
    if size > _MAX_HEADER_BYTES:
        return None
    data = _read(sock, size)
    return None if data is None else pickle.loads(data)


def _read(sock: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            data = sock.recv(size - len(parts))
        except OSError:
            return None
        if not data:
            return None
        parts += data
    return bytes(parts)
