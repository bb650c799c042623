"""Chooses how many ranks share what, from a model's shape and what the machine can do, and says why.

The estimate is a step's arithmetic over the devices' rate plus what the ranks exchange over their link. It compares
ways of splitting; it promises no times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sixfold.core.parallel.degrees import Degrees
from sixfold.core.parallel.settings import ParallelSettings

_GPU_FLOPS = 4.7e14  # of a whole step of Wan 1.3B at 81 frames in bfloat16 on an H200
_HOST_FLOPS = 1e11
_GPU_LINK_BYTES_PER_S = 3.5e11  # copies over NVLink between two H100 or H200; measured where possible
_HOST_LINK_BYTES_PER_S = 1.5e9  # gloo over the loopback device
_GPU_BYTES_PER_S = 2.5e12
_HOST_BYTES_PER_S = 1e10
_MERGE_PASSES = 10  # over a block's result, reads and writes
_EXCHANGE_SHARE = 0.45  # of the link, with the copies before and after: 0.62 ms for 100 MB were seen on two H200
_EXCHANGE_S = 3e-5  # before the first byte of an exchange arrives
_MIN_GAIN = 1.15  # a further doubling of the ranks must give so much


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelShape:
    """What a family says of a model that can be split.

    Attributes:
        num_heads: Of its attention.
        num_kv_heads: Of keys and values.
        head_dim: Of a head.
        num_layers: With attention over the whole sequence.
        num_tokens: Of a usual request.
        num_rows: Of a usual request's step: 2 with guidance.
        parameters: Of what is split, weights.
        itemsize: Bytes of an activation.
        can_split_tokens: Whether it is known how; else only rows can be divided.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    num_tokens: int
    num_rows: int
    parameters: int
    itemsize: int = 2
    can_split_tokens: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The devices that a replica may use.

    Attributes:
        names: ``cuda:0`` and on; several times ``cpu`` where the ranks are processes of one host.
        link_bytes_per_s: Between two of them, measured; None takes what is usual.
    """

    names: tuple[str, ...]
    link_bytes_per_s: float | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether they are GPUs."""
        return self.names[0].startswith("cuda")

    @property
    def link(self) -> float:
        """Bytes a second."""
        return self.link_bytes_per_s or (_GPU_LINK_BYTES_PER_S if self.is_gpu else _HOST_LINK_BYTES_PER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelChoice:
    """What was chosen.

    Attributes:
        degrees: Of the mesh.
        reasons: Why, a sentence each.
        step_s: Estimates by the number of ranks, for people.
    """

    degrees: Degrees
    reasons: tuple[str, ...]
    step_s: Mapping[int, float]


def choose(shape: ParallelShape, capacity: Capacity, settings: ParallelSettings | None) -> ParallelChoice:
    """The mesh of a replica.

    Args:
        shape: Of the model.
        capacity: Of the machine.
        settings: What the operator wants; None leaves everything to this function.
    """
    if settings is not None:
        degrees = settings.degrees(1)
        ulysses, why = _ulysses(shape, degrees, capacity, fixed=settings.ulysses)
        degrees = settings.degrees(ulysses)
        reasons = ("the configuration sets the degrees", *why)
        steps = {n: estimate_s(shape, _like(degrees, n), capacity) for n in (1, degrees.num_ranks)}
        return ParallelChoice(degrees=degrees, reasons=reasons, step_s=steps)
    return _choose(shape, capacity)


def _choose(shape: ParallelShape, capacity: Capacity) -> ParallelChoice:
    if not capacity.is_gpu:
        alone = estimate_s(shape, Degrees(), capacity)
        reason = "one process: the ranks would share the cores of one host, which one process uses as well"
        return ParallelChoice(degrees=Degrees(), reasons=(reason,), step_s={1: alone})
    best = {1: (estimate_s(shape, Degrees(), capacity), Degrees())}
    for degrees in _candidates(shape, len(capacity.names)):
        seconds = estimate_s(shape, degrees, capacity)
        if seconds < best.get(degrees.num_ranks, (float("inf"), degrees))[0]:
            best[degrees.num_ranks] = (seconds, degrees)
    chosen = 1
    reasons: list[str] = []
    if not shape.can_split_tokens:
        reasons.append("its tokens can't be shared: it is not known how, or none of its requests is long enough")
    for count in sorted(best)[1:]:
        gain = best[chosen][0] / best[count][0]
        wanted = _MIN_GAIN ** ((count / chosen - 1) ** 0.5)
        if gain < wanted:
            reasons.append(
                f"not {count} ranks: they would make a step {gain:.2f} times as fast, and {wanted:.2f} is asked"
            )
            break
        chosen = count
    degrees = best[chosen][1]
    if chosen == len(capacity.names):
        reasons.append(f"all {chosen} devices" if chosen > 1 else "there is one device")
    if degrees.cfg > 1:
        reasons.append(f"cfg {degrees.cfg} first: the {shape.num_rows} rows of guidance need no exchange within a step")
    if degrees.context > 1:
        reasons += _ulysses(shape, degrees, capacity, fixed=degrees.ulysses)[1]
    steps = {count: seconds for count, (seconds, _) in sorted(best.items())}
    return ParallelChoice(degrees=degrees, reasons=tuple(reasons), step_s=steps)


def _candidates(shape: ParallelShape, num_devices: int) -> Iterator[Degrees]:
    for cfg in {1, min(2, shape.num_rows)}:
        context = 1
        while cfg * context <= num_devices:
            if context == 1 or shape.can_split_tokens:
                for ulysses in (u for u in range(1, context + 1) if context % u == 0 and u <= shape.num_heads):
                    yield Degrees(cfg=cfg, context=context, ulysses=ulysses)
            context *= 2


def _ulysses(
    shape: ParallelShape, degrees: Degrees, capacity: Capacity, *, fixed: int | None
) -> tuple[int, tuple[str, ...]]:
    """The best share of the context ranks that trade heads, and why."""
    context = degrees.context
    if context == 1:
        return 1, ()
    possible = [u for u in range(1, context + 1) if context % u == 0 and u <= shape.num_heads]

    def seconds(ulysses: int) -> float:
        wanted = Degrees(cfg=degrees.cfg, data=degrees.data, context=context, ulysses=ulysses)
        return estimate_s(shape, wanted, capacity)

    best = fixed or min(possible, key=lambda ulysses: (seconds(ulysses), -ulysses))
    link = f"{capacity.link / 1e9:.0f} GB/s {'measured' if capacity.link_bytes_per_s else 'assumed'} between ranks"
    why = [f"{shape.num_tokens} tokens over {context} ranks, {link}"]
    if best > 1:
        even = "divide evenly" if shape.num_heads % best == 0 else "do not divide evenly, so some ranks have one more"
        why.append(f"ulysses {best}: {shape.num_heads} heads {even}, and each is exchanged once a layer")
    if context // best > 1:
        rest = f"there are only {shape.num_heads} heads" if best == max(possible) else "trading more heads costs more"
        why.append(f"ring {context // best}: {rest}; key/value blocks travel while the last ones are computed")
    return best, tuple(why)


def estimate_s(shape: ParallelShape, degrees: Degrees, capacity: Capacity) -> float:
    """Seconds of one step of one usual request."""
    flops = _GPU_FLOPS if capacity.is_gpu else _HOST_FLOPS
    rows = -(-shape.num_rows // degrees.num_row_groups)
    tokens = shape.num_tokens / degrees.context
    width = shape.num_heads * shape.head_dim
    heads = -(-shape.num_heads // degrees.ulysses) * degrees.ulysses / shape.num_heads  # the slowest rank's excess
    attention_s = 4 * tokens * shape.num_tokens * width * shape.num_layers * heads / flops
    dense_s = 2 * shape.parameters * tokens / flops
    kv_width = 2 * shape.num_kv_heads * shape.head_dim
    traded = (2 * width + kv_width) * tokens * shape.itemsize * (degrees.ulysses - 1) / degrees.ulysses
    ulysses_s = (
        shape.num_layers * (traded / capacity.link / _EXCHANGE_SHARE + 4 * _EXCHANGE_S) if degrees.ulysses > 1 else 0.0
    )
    block = kv_width * tokens * shape.itemsize  # of all Ulysses ranks, each with its share of the heads
    ring_s = shape.num_layers * (degrees.ring - 1) * (block / capacity.link + _EXCHANGE_S) if degrees.ring > 1 else 0.0
    merged = width * tokens * 4 * _MERGE_PASSES  # float32, once a block
    memory_rate = _GPU_BYTES_PER_S if capacity.is_gpu else _HOST_BYTES_PER_S
    merge_s = shape.num_layers * degrees.ring * merged / memory_rate if degrees.ring > 1 else 0.0
    return rows * (dense_s + ulysses_s + merge_s + max(attention_s, ring_s))


def _like(degrees: Degrees, num_ranks: int) -> Degrees:
    return degrees if num_ranks == degrees.num_ranks else Degrees()
