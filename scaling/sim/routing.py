"""How simulated requests find a replica: policies that see what the replicas have to do; `gateway_routing` has the gateway's."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sixfold.scaling.sim.request import Job, TraceRequest


class Candidate(Protocol):
    """A replica that may be chosen."""

    @property
    def replica_id(self) -> str:
        """Its name."""
        ...

    @property
    def num_running(self) -> int:
        """Requests that it has."""
        ...

    @property
    def pending_units(self) -> float:
        """Work that it has, in tokens."""
        ...

    def cached_blocks(self, request: TraceRequest) -> int:
        """Leading blocks of the request's prompt that it has, as its cache events would tell without delay."""
        ...

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that it has in all."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a policy says: the candidate's index, and why in a word."""

    index: int
    reason: str


class RoutingPolicy(Protocol):
    """Chooses a replica for each request. One object a site; requests come in order."""

    def choose(self, job: Job, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """Picks one of at least one candidate; a job comes again when its site was lost."""
        ...

    def started(self, job: Job) -> None:
        """Learns that the first token of a job has come."""
        ...

    def ended(self, job: Job) -> None:
        """Learns that a job is over; harmless when it was said before."""
        ...


class _Forgetful:
    """What policies do that look at the replicas alone when they are told of jobs: nothing."""

    def started(self, job: Job) -> None:
        """See `RoutingPolicy.started`."""

    def ended(self, job: Job) -> None:
        """See `RoutingPolicy.ended`."""


class RoundRobin(_Forgetful):
    """One after the other."""

    def __init__(self) -> None:
        self._num_chosen = 0

    def choose(self, job: Job, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """The next one."""
        self._num_chosen += 1
        return Choice(index=(self._num_chosen - 1) % len(candidates), reason="round_robin")


class LeastLoaded(_Forgetful):
    """The replica with the fewest requests of all."""

    def choose(self, job: Job, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """The first of equals."""
        index = min(range(len(candidates)), key=lambda each: candidates[each].num_running)
        return Choice(index=index, reason="least_loaded")


class PowerOfTwo(_Forgetful):
    """The less loaded of two that are drawn: nearly as even as the least of all, and as fast with thousands.

    Source: Mitzenmacher 2001, The power of two choices in randomized load balancing.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, job: Job, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """The first drawn of equals."""
        first = int(self._random.random() * len(candidates))
        second = int(self._random.random() * len(candidates))
        lighter = first if candidates[first].num_running <= candidates[second].num_running else second
        return Choice(index=lighter, reason="power_of_two")


class PrefixHash(_Forgetful):
    """Requests that begin alike go to one replica, whatever it has to do: affinity without knowledge of load."""

    def choose(self, job: Job, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """By rendezvous: where replicas come or go, only the prefixes of those move."""
        prefix = str(job.request.blocks[:1])

        def rank(index: int) -> int:
            return zlib.crc32(f"{prefix}{candidates[index].replica_id}".encode())

        return Choice(index=max(range(len(candidates)), key=rank), reason="prefix_hash")


class KvAware(_Forgetful):
    """The replica where the least work lies before this request's end: what it has to do, and what of the prompt it lacks.

    Args:
        block_tokens: Tokens of a block.

    Source: NVIDIA Dynamo's KV router: prefill load less overlap, plus load in decode.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens

    def choose(self, job: Job, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """The first of equals."""

        def cost(index: int) -> float:
            candidate = candidates[index]
            cached = min(candidate.cached_blocks(job.request) * self._block_tokens, job.request.prompt_tokens)
            return candidate.pending_units - cached

        return Choice(index=min(range(len(candidates)), key=cost), reason="kv_aware")


def routing_policies(block_tokens: int, seed: int) -> Mapping[str, Callable[[], RoutingPolicy]]:
    """Makers of policies by the name that a configuration uses."""
    return {
        "round_robin": RoundRobin,
        "least_loaded": LeastLoaded,
        "power_of_two": lambda: PowerOfTwo(seed),
        "prefix_hash": PrefixHash,
        "kv_aware": lambda: KvAware(block_tokens),
    }
