"""What an entry of the configuration will take of which device, asked of its family."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from sixfold.core.errors import ConfigError, SixfoldError
from sixfold.core.family import need_of_files
from sixfold.core.memory.machine import Machine, available_host_bytes, cuda_devices
from sixfold.core.memory.need import HOST, Claim, MemoryNeed, MemoryQuestion
from sixfold.core.parallel.link import measured_link
from sixfold.core.parallel.planner import Capacity, ParallelChoice, choose
from sixfold.core.registry import ResolvedModel

_log = logging.getLogger(__name__)

_UNKNOWN_BYTES = 1 << 50
"""Of a device that is not known here: everything fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What one replica of a model will take.

    Attributes:
        device: Where it goes: ``auto`` is resolved.
        need: What the family says of its first process.
        parallel: Its ranks; None for one process.
    """

    device: str
    need: MemoryNeed
    parallel: ParallelChoice | None = None

    @property
    def rank_devices(self) -> tuple[str, ...]:
        """Where each of its processes computes."""
        count = 1 if self.parallel is None else self.parallel.degrees.num_ranks
        return rank_devices(self.device, count)

    def claims(self, free_bytes: Mapping[str, int], *, num_replicas: int = 1) -> tuple[Claim, ...]:
        """What all replicas take of each device. Every rank holds the weights, and none but the first a cache."""
        free = free_bytes.get(self.device, 0)
        claims = self.need.claims(self.device, free, num_replicas=num_replicas)
        other = dataclasses.replace(self.need, cache_bytes=0, cache_share=0.0)
        for device in self.rank_devices[1:]:
            claims += other.claims(device, free_bytes.get(device, 0), num_replicas=num_replicas)
        return claims


def rank_devices(first: str, count: int) -> tuple[str, ...]:
    """The devices of a replica's ranks: the first, and those after it; on the host they share its cores."""
    if first == HOST:
        return (HOST,) * count
    start = int(first.partition(":")[2])
    return tuple(f"cuda:{start + index}" for index in range(count))


def forecast(resolved: ResolvedModel, machine: Machine, *, free_bytes: int | None = None) -> Forecast:
    """Asks the family. Blocks while headers are read: call it in a thread.

    Args:
        resolved: The entry with its files.
        machine: The devices.
        free_bytes: Of the model's device; None for what is available now.

    Raises:
        SixfoldError: The files are not what the family needs.
    """
    name = machine.resolve(resolved.entry.device)
    device = machine.device(name)
    total = _UNKNOWN_BYTES if device is None else device.total_bytes
    if free_bytes is None:
        free_bytes = min(total, available_host_bytes()) if name == HOST else total
    question = MemoryQuestion(
        path=resolved.path,
        options=resolved.options,
        device=name,
        num_threads=len(os.sched_getaffinity(0)),
        total_bytes=total,
        free_bytes=free_bytes,
        has_bfloat16=device is not None and device.has_bfloat16,
        quantization=resolved.entry.quantization,
    )
    try:
        need = resolved.family.memory(question)
    except SixfoldError:
        raise
    except Exception:  # a stranger's plugin: its model may still load, so its files are counted
        _log.exception("the family %s can't say what %s takes", resolved.family.name, resolved.entry.name)
        need = need_of_files(question)
    return Forecast(device=name, need=need, parallel=_parallel(resolved, machine, question))


def _parallel(resolved: ResolvedModel, machine: Machine, question: MemoryQuestion) -> ParallelChoice | None:
    """What the planner says, if the entry asks for ranks.

    Raises:
        ConfigError: They do not fit the machine.
    """
    wanted, family = resolved.entry.parallel, resolved.family
    if wanted is None or family.parallel is None:
        return None
    settings = None if wanted == "auto" else wanted
    known = [device.name for device in machine.devices if device.name != HOST]
    following = [name for name in known if int(name.partition(":")[2]) >= int(question.device.partition(":")[2] or 0)]
    names = tuple(following) if question.device != HOST else (HOST,) * (settings.num_ranks if settings else 1)
    place = f"models.{resolved.entry.name}.parallel"
    if settings is not None and known and settings.num_ranks > len(names):
        raise ConfigError(
            f"{place}: {settings.num_ranks} ranks need as many devices, and there are {len(names)} from {question.device} "
            "on. Lower a degree, or set another 'device'."
        )
    names = names or (question.device,)
    # A plan may be for another machine than this: then there is nothing to measure.
    capacity = Capacity(names=names, link_bytes_per_s=measured_link(len(cuda_devices())))
    choice = choose(family.parallel(question), capacity, settings)
    if choice.degrees.num_ranks > 1 and resolved.entry.replicas > 1 and question.device != HOST:
        raise ConfigError(
            f"{place}: {resolved.entry.replicas} replicas would share the ranks' devices. Set replicas to 1, and 'data' to "
            "divide requests among more GPUs."
        )
    for reason in choice.reasons:
        _log.info("%s: %s: %s", place, choice.degrees, reason)
    return choice
