"""The gateway's own policies in the simulation: the same objects choose and the same book of reservations is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

from sixfold.scaling.route.affinity import Affinity
from sixfold.scaling.route.coming import ComingPrompts
from sixfold.scaling.route.cost import cheapest
from sixfold.scaling.route.hash_ring import BoundedHash
from sixfold.scaling.route.load import PowerOfTwo, RoundRobin
from sixfold.scaling.route.policy import Candidate as GatewayCandidate
from sixfold.scaling.route.policy import Choice as GatewayChoice
from sixfold.scaling.route.policy import Decision, Policy, RequestShape
from sixfold.scaling.route.prefix import PrefixAffinity
from sixfold.scaling.route.router import ReplicaFacts, Router
from sixfold.scaling.sim.request import Job, TraceRequest
from sixfold.scaling.sim.routing import Candidate, Choice, RoutingPolicy

ShapeOf = Callable[[TraceRequest], RequestShape]
"""What the gateway would know of a request."""


def shape_of_trace(request: TraceRequest) -> RequestShape:
    """Of a request of a trace: its lengths and its blocks, which stand for the hashes of its text."""
    return RequestShape(
        model="",
        prompt_units=request.prompt_tokens,
        output_units=request.output_tokens,
        blocks=request.blocks,
    )


class KnownCaches:
    """The rule of the gateway's ``kv``, told by the simulated replicas themselves what they hold, without delay.

    Args:
        block_tokens: Of the replicas' caches.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._cached: Sequence[float] = ()
        self._held: Sequence[int] = ()
        self._coming = ComingPrompts()

    def look(self, request: TraceRequest, candidates: Sequence[Candidate]) -> None:
        """Sees what the candidates of the next call hold."""
        self._cached = [
            min(1.0, each.cached_blocks(request) * self._block_tokens / request.prompt_tokens) for each in candidates
        ]
        self._held = [each.num_cached_blocks for each in candidates]

    def choose(self, request: RequestShape, candidates: Sequence[GatewayCandidate], now_s: float) -> GatewayChoice:
        """See `Policy.choose`."""
        coming = [self._coming.share(request, each.replica_id) for each in candidates]
        return cheapest(request, candidates, list(map(max, self._cached, coming)), self._held)

    def routed(self, request: RequestShape, replica_id: str, now_s: float) -> None:
        """See `Policy.routed`: until the replica tells itself."""
        self._coming.routed(request, replica_id)

    def computed(self, request: RequestShape, replica_id: str) -> None:
        """See `Policy.computed`: the replica tells itself."""
        self._coming.computed(request, replica_id)

    def forget(self, replica_id: str) -> None:
        """See `Policy.forget`: a replica that is gone tells nothing any more."""
        self._coming.forget(replica_id)


class GatewayRouting:
    """A policy of the gateway behind its router: it sees what it has reserved, not what the replicas have done.

    Args:
        policy: Chooses.
        shape_of: What the gateway would know of a request.
        caches: Looks at the replicas before each choice; None where the policy does not ask what they hold.
    """

    def __init__(self, policy: Policy, shape_of: ShapeOf = shape_of_trace, caches: KnownCaches | None = None) -> None:
        self._router = Router(policy)
        self._shape_of = shape_of
        self._caches = caches
        self._open: dict[Job, Decision] = {}

    @property
    def num_open(self) -> int:
        """Jobs whose work is reserved."""
        return self._router.num_open

    def choose(self, job: Job, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """Chooses and reserves; what an earlier try of the same job had reserved is given back."""
        self.ended(job)
        if self._caches is not None:
            self._caches.look(job.request, candidates)
        facts = [ReplicaFacts(replica_id=each.replica_id) for each in candidates]
        decision = self._open[job] = self._router.select(self._shape_of(job.request), facts, now_s)
        index = next(n for n, each in enumerate(candidates) if each.replica_id == decision.replica_id)
        return Choice(index=index, reason=decision.reason)

    def started(self, job: Job) -> None:
        """The first token came: what was reserved before it is given back."""
        decision = self._open.get(job)
        if decision is not None:
            self._router.started(decision)

    def ended(self, job: Job) -> None:
        """It is over: all that was reserved is given back."""
        decision = self._open.pop(job, None)
        if decision is not None:
            self._router.complete(decision)


def gateway_policies(
    block_tokens: int, seed: int, shape_of: ShapeOf = shape_of_trace
) -> Mapping[str, Callable[[], RoutingPolicy]]:
    """Makers of the gateway's policies, by the names of ``routing.policy`` in its configuration.

    Args:
        block_tokens: Of the replicas' caches; for ``kv``.
        seed: Of what is drawn.
        shape_of: What the gateway would know of a request.
    """

    def kv() -> RoutingPolicy:
        caches = KnownCaches(block_tokens)
        return GatewayRouting(Affinity(caches), shape_of, caches)

    return {
        "round_robin": lambda: GatewayRouting(RoundRobin(), shape_of),
        "power_of_two": lambda: GatewayRouting(Affinity(PowerOfTwo(Random(seed))), shape_of),
        "hash": lambda: GatewayRouting(BoundedHash(), shape_of),
        "prefix": lambda: GatewayRouting(Affinity(PrefixAffinity()), shape_of),
        "kv": kv,
    }
