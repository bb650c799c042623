"""A simulated replica: batches in flight, prefills in chunks, caches prefixes, and takes the time that a fitted model says."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass

from sixfold.core.autoscaling.load import ModelLoad, StepWork
from sixfold.core.batching.drain import DrainRate
from sixfold.scaling.autoscale.step_time import StepTime, attended_tokens
from sixfold.scaling.sim.prefix_cache import PrefixCache
from sixfold.scaling.sim.request import Job, Outcome, TraceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaProfile:
    """What one replica is able to do.

    Attributes:
        step_time: Seconds of a step.
        max_step_tokens: Tokens of a step: prompt tokens and one for each decoding sequence.
        max_rows: Sequences in the batch.
        cache_tokens: Room for keys and values. A sequence reserves all that it will need, so none is ever preempted; cached
            prefixes live in the same room, and are assumed to fit beside what runs.
        block_tokens: Tokens of a block of the prefix cache; 0 for no prefix cache.
        overhead_s: Time of a request beside its steps: HTTP, tokenization.
    """

    step_time: StepTime
    max_step_tokens: int = 2048
    max_rows: int = 256
    cache_tokens: int = 1 << 20
    block_tokens: int = 0
    overhead_s: float = 0.0


class SimReplica:
    """One replica. The simulation owns it, tells it of requests and calls `finish_segment` at the times that it is given.

    A *segment* is one step that prefills, or a run of steps that only decode: between two events nothing changes, so they
    need no event each. A request that arrives within such a run ends it at the next step's end.

    Args:
        replica_id: Unique.
        profile: What it is able to do.
        region: Its site.
    """

    def __init__(self, replica_id: str, profile: ReplicaProfile, region: str = "") -> None:
        self.replica_id = replica_id
        self.profile = profile
        self.region = region
        self.weight = 1.0
        self.version = 0
        """Changes whenever the end of the segment does: events of an older one are void."""
        self.draining = False
        self.num_running = 0
        self.pending_units = 0
        """Tokens that its requests still ask for, of prompts and answers alike."""
        max_blocks = profile.cache_tokens // profile.block_tokens if profile.block_tokens else 0
        self.cache = PrefixCache(max_blocks)
        self.started: list[Job] = []
        """Requests whose first token came with the last segment."""
        self._waiting: deque[Job] = deque()
        self._prefilling: list[Job] = []
        self._rows: list[tuple[int, int, Job]] = []
        self._order = itertools.count()
        self._step = 0
        self._kv_tokens = 0
        self._reserved_tokens = 0
        self._rate = DrainRate()
        self._request_s = 0.0
        self._counted_s = 0.0
        self._start_s = 0.0
        self._num_steps = 0
        self._plan: list[tuple[Job, int]] = []
        self._done_steps = 0
        self._busy_s = 0.0
        self._tokens_in = self._tokens_out = 0

    @property
    def num_streams(self) -> int:
        """Answers that it writes."""
        return len(self._rows)

    @property
    def queued_prompt_tokens(self) -> int:
        """Prompt tokens that it has not computed."""
        return sum(job.prefill_left for job in self._prefilling) + sum(
            job.request.prompt_tokens for job in self._waiting
        )

    @property
    def busy(self) -> bool:
        """Whether a segment runs."""
        return self._num_steps > 0

    def cached_blocks(self, request: TraceRequest) -> int:
        """Leading blocks of the prompt that are here."""
        return self.cache.match(request.blocks)

    def cached_tokens(self, request: TraceRequest) -> int:
        """Tokens of the prompt that are here."""
        return self.cached_blocks(request) * self.profile.block_tokens

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that its prefix cache holds."""
        return len(self.cache)

    def load(self, now_s: float) -> ModelLoad:
        """What a server would say about itself."""
        self._count(now_s)
        return ModelLoad(
            model_name=self.region,
            num_in_flight=self.num_running,
            num_waiting=len(self._waiting),
            request_seconds=self._request_s,
            queued_units=self.pending_units,
            units_per_s=self._rate.units_per_s,
            cache_use=min(1.0, self._reserved_tokens / self.profile.cache_tokens),
            steps=StepWork(
                num_steps=self._done_steps,
                seconds=self._busy_s,
                input_tokens=self._tokens_in,
                output_tokens=self._tokens_out,
                budget_units=self.profile.max_step_tokens,
            ),
        )

    def submit(self, job: Job, now_s: float) -> float | None:
        """Takes a request.

        Returns:
            When the segment ends, if that has changed.
        """
        self._count(now_s)
        self.num_running += 1
        self.pending_units += job.context_tokens
        self._waiting.append(job)
        if not self.busy:
            return self._begin(now_s)
        if self._plan or not self._fits(job):
            return None
        rows, elapsed_s = len(self._rows), now_s - self._start_s
        steps = self.profile.step_time.decode_steps(elapsed_s, decode_rows=rows, kv_tokens=self._kv_tokens)
        if steps >= self._num_steps:
            return None
        self._num_steps = steps
        self.version += 1
        return self._start_s + self._segment_s()

    def finish_segment(self, now_s: float, expired_before_s: float) -> tuple[list[Job], float | None]:
        """Ends the segment and begins the next.

        Args:
            now_s: The time that was told as its end.
            expired_before_s: Requests that arrived before this and still wait are given up.

        Returns:
            The requests that have ended, and when the next segment ends; None when there is nothing to do.
        """
        self._count(now_s)
        self.started = []
        steps, self._num_steps = self._num_steps, 0
        done = self._decode(steps, now_s)
        units = steps * (len(self._rows) + len(done))
        self._tokens_out += units
        for job, tokens in self._plan:
            job.prefill_left -= tokens
            units += tokens
            self._tokens_in += tokens
            if job.prefill_left == 0:
                self._first_token(job, now_s, done)
                self._tokens_out += 1
        self._plan = []
        self._done_steps += steps
        self._busy_s += now_s - self._start_s
        self.pending_units -= units
        self._rate.observe(units, now_s - self._start_s)
        while self._waiting and self._waiting[0].request.arrived_s < expired_before_s:
            job = self._waiting.popleft()
            job.outcome = Outcome.EXPIRED
            job.finished_s = now_s
            self.pending_units -= job.context_tokens
            done.append(job)
        self.num_running -= len(done)
        return done, self._begin(now_s)

    def lose(self, now_s: float) -> list[Job]:
        """Dies: gives out all requests as they are."""
        self._count(now_s)
        jobs = [*self._waiting, *self._prefilling, *(job for _, _, job in self._rows)]
        self._waiting.clear()
        self._prefilling.clear()
        self._rows.clear()
        self._plan, self._num_steps = [], 0
        self.num_running = self.pending_units = self._kv_tokens = self._reserved_tokens = 0
        self.cache.clear()
        self.version += 1
        return jobs

    def _count(self, now_s: float) -> None:
        self._request_s += self.num_running * (now_s - self._counted_s)
        self._counted_s = now_s

    def _fits(self, job: Job) -> bool:
        if not self._prefilling and not self._rows:
            return True  # alone it is slow rather than impossible
        if len(self._rows) + len(self._prefilling) >= self.profile.max_rows:
            return False
        return self._reserved_tokens + job.context_tokens <= self.profile.cache_tokens

    def _begin(self, now_s: float) -> float | None:
        """Plans the next segment: a prefill step where there are prompts, else decode steps until a sequence ends."""
        budget = max(1, self.profile.max_step_tokens - len(self._rows))
        self._plan = []
        for job in self._prefilling:
            tokens = min(budget, job.prefill_left)
            if tokens == 0:
                break
            self._plan.append((job, tokens))
            budget -= tokens
        while budget > 0 and self._waiting and self._fits(self._waiting[0]):
            job = self._waiting.popleft()
            self._admit(job)
            tokens = min(budget, job.prefill_left)
            self._plan.append((job, tokens))
            budget -= tokens
        if self._plan:
            self._num_steps = 1
        elif self._rows:
            self._num_steps = self._rows[0][0] - self._step
        else:
            return None
        self._start_s = now_s
        self.version += 1
        return now_s + self._segment_s()

    def _segment_s(self) -> float:
        rows, kv_tokens, step_time = len(self._rows), self._kv_tokens, self.profile.step_time
        if self._plan:
            return step_time.seconds(
                prefill_tokens=sum(tokens for _, tokens in self._plan),
                decode_rows=rows,
                kv_tokens=kv_tokens,
                prefill_kv_tokens=sum(
                    attended_tokens(tokens, job.request.prompt_tokens - job.prefill_left) for job, tokens in self._plan
                ),
            )
        return step_time.decode_seconds(self._num_steps, decode_rows=rows, kv_tokens=kv_tokens)

    def _admit(self, job: Job) -> None:
        request = job.request
        self._reserved_tokens += job.context_tokens
        # The last token is computed in any case: its output is the first token of the answer.
        found = max(0, min(self.cached_tokens(request), request.prompt_tokens - 1))
        if not job.given_tokens:  # else what counts was found where the prompt was computed
            job.cached_tokens = found
        known = max(found, job.given_tokens)
        job.prefill_left = request.prompt_tokens - known
        self.pending_units -= known
        self._prefilling.append(job)

    def _first_token(self, job: Job, now_s: float, done: list[Job]) -> None:
        self._prefilling.remove(job)
        self.started.append(job)
        if self.profile.block_tokens:
            self.cache.use(job.request.blocks)
        if job.first_token_s is None:
            job.first_token_s = now_s + self.profile.overhead_s
        self.pending_units -= 1
        if job.request.output_tokens == 1:
            self._end(job, now_s, done)
            return
        heapq.heappush(self._rows, (self._step + job.request.output_tokens - 1, next(self._order), job))
        self._kv_tokens += job.request.prompt_tokens + 1

    def _decode(self, steps: int, now_s: float) -> list[Job]:
        self._step += steps
        self._kv_tokens += steps * len(self._rows)
        done: list[Job] = []
        while self._rows and self._rows[0][0] <= self._step:
            _, _, job = heapq.heappop(self._rows)
            self._kv_tokens -= job.context_tokens
            self._end(job, now_s, done)
        return done

    def _end(self, job: Job, now_s: float, done: list[Job]) -> None:
        self._reserved_tokens -= job.context_tokens
        job.outcome = Outcome.ANSWERED
        job.finished_s = now_s + self.profile.overhead_s
        done.append(job)
