"""Messages between the serving process and a worker, and their framing: four bytes of length, then msgpack.

Plugin payloads travel as ``msgspec.Raw``: encoded by the sender's family type, decoded by the receiver's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from sixfold.core.batching.model import ModelInfo
from sixfold.core.batching.step_watch import StepNews
from sixfold.core.decisions import Decision
from sixfold.core.errors import RequestError, StepFailed, request_error_types
from sixfold.core.messages import ReplicaTrace, Timing, Usage
from sixfold.core.parallel.degrees import Degrees

_MAX_FRAME_BYTES = 1 << 30
_LARGE_FRAME_BYTES = 1 << 20


class Ranks(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """The processes that one replica is made of, and how long they may take."""

    degrees: Degrees
    step_timeout_s: float
    load_timeout_s: float


class Load(msgspec.Struct, frozen=True, tag=True, array_like=True, kw_only=True):
    """The first message to a worker: what to load, under which bounds."""

    model_name: str
    family: str
    path: str
    device: str
    num_threads: int
    num_pool_threads: int
    options: dict[str, Any]
    quantization: dict[str, Any] | None = None
    max_queue_units: int | None = None
    max_queue_s: float | None = None
    max_running_sequences: int | None = None
    max_step_units: int | None = None
    request_timeout_s: float | None = None
    watchdog_timeout_s: float | None = None
    objective_kind: str = "throughput"
    objective_target_s: float | None = None
    replica: int = 0
    ranks: Ranks | None = None


class Submit(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A request; ``timeout_s`` is what is left until its deadline, since clocks are not shared."""

    number: int
    request_id: str
    tenant: str
    weight: float
    priority: int
    timeout_s: float | None
    input: msgspec.Raw
    trace_id: str | None = None


class SubmitStruct(msgspec.Struct, frozen=True, tag="Submit", array_like=True):
    """A `Submit` as its sender makes it: with the input itself, so that it is encoded once."""

    number: int
    request_id: str
    tenant: str
    weight: float
    priority: int
    timeout_s: float | None
    input: msgspec.Struct
    trace_id: str | None = None


class Cancel(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The client of this Submit went away."""

    number: int
    request_id: str


class Drain(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Take nothing new, finish what runs within the time, then end."""

    timeout_s: float


class Adjust(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The model shall take over new options; answered by an `Adjusted` of the same number."""

    number: int
    options: dict[str, Any]


class Watch(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Somebody watches the batch from now on, or nobody any more."""

    on: bool


ToWorker = Load | Submit | Cancel | Drain | Adjust | Watch


class LoadProgress(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """How far loading is, 0 to 1, and what is being done."""

    fraction: float
    what: str


class Ready(msgspec.Struct, frozen=True, tag=True, array_like=True, kw_only=True):
    """The model is loaded and warm; ``device_bytes`` is what torch holds for it of a GPU, if it does."""

    max_model_len: int | None
    parameters: int | None
    memory_bytes: int | None
    details: dict[str, str | int | float | bool]
    device_bytes: int | None = None

    @classmethod
    def of(cls, info: ModelInfo, *, device_bytes: int | None = None) -> Ready:
        """The message for a model's own facts."""
        return cls(
            max_model_len=info.max_model_len,
            parameters=info.parameters,
            memory_bytes=info.memory_bytes,
            details=dict(info.details),
            device_bytes=device_bytes,
        )

    @property
    def info(self) -> ModelInfo:
        """The facts again."""
        return ModelInfo(
            max_model_len=self.max_model_len,
            parameters=self.parameters,
            memory_bytes=self.memory_bytes,
            details=self.details,
        )


class LoadFailed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The model can't be loaded; the worker ends. ``usage_error`` says that a retry would fail again."""

    message: str
    usage_error: bool


class WireIncrement(msgspec.Struct, frozen=True, tag="i", array_like=True):
    """See `Increment`."""

    number: int
    output: msgspec.Raw


class WireFinished(msgspec.Struct, frozen=True, tag="f", array_like=True):
    """See `Finished`."""

    number: int
    result: msgspec.Raw
    usage: Usage
    timing: Timing
    finish_reason: str
    trace: ReplicaTrace | None = None


class WireFailed(msgspec.Struct, frozen=True, tag="e", array_like=True):
    """See `Failed`; the error by its class name and fields."""

    number: int
    error_type: str
    message: str
    param: str | None
    code: str | None
    retry_after_s: float | None
    trace: ReplicaTrace | None = None

    @classmethod
    def of(cls, number: int, error: RequestError, trace: ReplicaTrace | None = None) -> WireFailed:
        """The message for an error."""
        return cls(number, type(error).__name__, error.message, error.param, error.code, error.retry_after_s, trace)

    @property
    def error(self) -> RequestError:
        """The error again; a class that this process does not have becomes StepFailed."""
        cls = request_error_types().get(self.error_type, StepFailed)
        return cls(self.message, param=self.param, code=self.code, retry_after_s=self.retry_after_s)


WireEvent = WireIncrement | WireFinished | WireFailed


class Outputs(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """All events since the last frame: one frame a step, not one a token."""

    events: list[WireEvent]


class Stats(msgspec.Struct, frozen=True, tag=True, array_like=True, kw_only=True):
    """The replica's figures; see `ReplicaSnapshot`. Each decision comes once."""

    num_running: int = 0
    num_waiting: int = 0
    queued_units: int = 0
    units_per_s: float = 0.0
    metrics: dict[str, float] = {}
    decisions: tuple[Decision, ...] = ()


class Watched(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What the steps did since the last of these; ``num_dropped`` counts what came too fast, since the watch began."""

    news: list[StepNews]
    num_dropped: int


class Adjusted(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The model has taken over new options; or not, and why."""

    number: int
    refusal: str | None


class Alive(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Said once a second: ``what`` has run for so long, if anything runs."""

    what: str
    seconds: float


class Drained(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """All answers were sent; the worker ends."""


FromWorker = LoadProgress | Ready | LoadFailed | Outputs | Stats | Watched | Adjusted | Alive | Drained


def frame(payload: bytes) -> bytes:
    """Puts the length before a payload."""
    return len(payload).to_bytes(4, "big") + payload


class FrameReader:
    """Cuts a byte stream into payloads. A large one is gathered in a buffer of its own size and handed out uncopied."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._large = bytearray()
        self._num_filled = 0

    def feed(self, data: bytes) -> Iterator[bytes | bytearray]:
        """Adds bytes and yields the payloads that are complete.

        Raises:
            ValueError: The stream is not ours: a frame of more than 1 GiB.
        """
        used = self._fill(data)
        if self._large:
            if self._num_filled < len(self._large):
                return
            payload, self._large = self._large, bytearray()
            yield payload
        self._buffer += memoryview(data)[used:]
        start = 0
        while len(self._buffer) - start >= 4:
            size = int.from_bytes(self._buffer[start : start + 4], "big")
            if size > _MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes: the stream is broken")
            if len(self._buffer) - start - 4 < size:
                if size >= _LARGE_FRAME_BYTES:
                    self._large, self._num_filled = bytearray(size), 0
                    self._fill(self._buffer[start + 4 :])
                    start = len(self._buffer)
                break
            yield bytes(self._buffer[start + 4 : start + 4 + size])
            start += 4 + size
        del self._buffer[:start]

    def _fill(self, data: bytes | bytearray) -> int:
        """Adds to the large payload what belongs to it; returns how many bytes did."""
        num_bytes = min(len(data), len(self._large) - self._num_filled)
        if num_bytes > 0:
            with memoryview(self._large) as view:
                view[self._num_filled : self._num_filled + num_bytes] = memoryview(data)[:num_bytes]
            self._num_filled += num_bytes
        return max(0, num_bytes)
