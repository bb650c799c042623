"""A simulated site whose prompts are computed by replicas of their own: the running system's split and sizes, on a trace."""

from __future__ import annotations

from functools import partial

import msgspec

from sixfold.core.autoscaling.load import ServerLoad
from sixfold.scaling.disagg.planner import PromptShape, ReplicaLoad, SplitCosts, decide_split
from sixfold.scaling.sim.replica import SimReplica
from sixfold.scaling.sim.request import Job, Outcome, TraceRequest
from sixfold.scaling.sim.simulation import Rules, Simulation
from sixfold.scaling.sim.site import Site
from sixfold.scaling.up.sizing import Answered, RolesSizer, Seen


class RoleSimulation(Simulation):
    """Runs a trace through one site with two roles.

    A request is routed to who answers it. Where that pays, a leg of it goes to a prefill replica first; its blocks then travel,
    and the answer begins with all of the prompt but its last token cached. Travelling takes no steps' time at either end.

    Args:
        decode: Who answers.
        prefill: Who computes prompts.
        sizer: Sizes both, by the names of the two; of a model that is called as ``decode`` is.
        costs: Of a split.
        prefill_tokens_per_s: What gateways believe that a replica computes.
        min_prompt_tokens: Shorter prompts are computed where they are answered.
        rules: The world.
    """

    def __init__(
        self,
        decode: Site,
        prefill: Site,
        sizer: RolesSizer,
        *,
        costs: SplitCosts,
        prefill_tokens_per_s: float,
        min_prompt_tokens: int,
        rules: Rules,
    ) -> None:
        super().__init__((decode, prefill), rules)
        self._decode = decode
        self._prefill = prefill
        self._sizer = sizer
        self._costs = costs
        self._prefill_tokens_per_s = prefill_tokens_per_s
        self._min_prompt_tokens = min_prompt_tokens
        self._legs: dict[Job, tuple[Job, SimReplica]] = {}
        """Of prompts that are computed elsewhere: the request, and who will answer it."""
        self._said: dict[str, ServerLoad] = {}
        self.num_split = 0

    def _send(self, job: Job, now_s: float) -> None:
        job.num_attempts += 1
        replica = self._decode.route(job, now_s)
        if replica is not None:
            self._submit(self._decode, replica, job, now_s)

    def _submit(self, site: Site, replica: SimReplica, job: Job, now_s: float) -> None:
        if site is self._prefill or job.given_tokens or not self._splits(replica, job, now_s):
            super()._submit(site, replica, job, now_s)

    def _splits(self, decode: SimReplica, job: Job, now_s: float) -> bool:
        """Sends the prompt to a prefill replica first, if that pays; says whether."""
        request = job.request
        if not self._prefill.ready or request.prompt_tokens < self._min_prompt_tokens:
            return False
        leg = Job(
            TraceRequest(
                arrived_s=request.arrived_s,
                prompt_tokens=request.prompt_tokens,
                output_tokens=1,
                blocks=request.blocks,
            )
        )
        prefill = self._prefill.route(leg, now_s)
        assert prefill is not None, "one is ready"
        verdict = decide_split(
            PromptShape(
                num_tokens=request.prompt_tokens,
                cached_at_decode=decode.cached_tokens(request),
                cached_at_prefill=prefill.cached_tokens(request),
            ),
            ReplicaLoad(
                prefill_tokens_per_s=self._prefill_tokens_per_s,
                queued_tokens=decode.queued_prompt_tokens,
                num_streams=decode.num_streams,
            ),
            ReplicaLoad(prefill_tokens_per_s=self._prefill_tokens_per_s, queued_tokens=prefill.queued_prompt_tokens),
            self._costs,
        )
        if not verdict.split:
            self._prefill.policy.ended(leg)
            return False
        self.num_split += 1
        self._legs[leg] = (job, decode)
        super()._submit(self._prefill, prefill, leg, now_s)
        return True

    def _end(self, job: Job, outcome: Outcome, now_s: float) -> None:
        if job not in self._legs:
            super()._end(job, outcome, now_s)
            return
        request, decode = self._legs.pop(job)
        if outcome is not Outcome.ANSWERED:
            self._decode.policy.ended(request)
            super()._end(request, outcome, now_s)
            return
        request.given_tokens = request.request.prompt_tokens - 1
        request.cached_tokens = job.cached_tokens
        travel_s = request.given_tokens * self._costs.kv_bytes_per_token / self._costs.link_bytes_per_s
        self._at(now_s + self._costs.overhead_s + travel_s, partial(self._answer, decode, request))

    def _answer(self, decode: SimReplica, job: Job, now_s: float) -> None:
        """The blocks are there. A replica that was told to go meanwhile and has nothing left is gone: another one takes them."""
        if decode in self._decode.ready or decode in self._decode.draining:
            super()._submit(self._decode, decode, job, now_s)
            return
        self._decode.policy.ended(job)
        self._send(job, now_s)

    def _resize_all(self, now_s: float) -> None:
        sites = {self._decode.name: self._decode, self._prefill.name: self._prefill}
        seen = {
            name: Seen(
                count=len(site.ready) + site.num_starting,
                servers=tuple(self._asked(replica, now_s) for replica in site.ready),
                num_held=len(site.held),
            )
            for name, site in sites.items()
        }
        for name, sized in self._sizer.resize(seen, now_s).items():
            self._carry_out(sites[name], sites[name].order(sized.num_replicas, sized.reason), now_s)

    def _asked(self, replica: SimReplica, now_s: float) -> Answered:
        """What a server would answer to ``GET /load``."""
        before = self._said.get(replica.replica_id)
        load = msgspec.structs.replace(replica.load(now_s), model_name=self._decode.name)
        now = ServerLoad(server_load=replica.num_running, started_s=0.0, at_s=now_s, models=(load,))
        self._said[replica.replica_id] = now
        return Answered(before=before, now=now)
