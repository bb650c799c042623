"""How many replicas the services of one model shall have: as one service, or as two roles that are sized together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from sixfold.core.autoscaling.load import ModelLoad, ServerLoad
from sixfold.scaling.autoscale.decide import decide
from sixfold.scaling.autoscale.decide_roles import RolesLook, RolesState, decide_roles, restarted_roles
from sixfold.scaling.autoscale.fleet import Fleet, State
from sixfold.scaling.autoscale.roles import RoleDemand, Roles
from sixfold.scaling.autoscale.step_time import Measured
from sixfold.scaling.disagg.service import RoleService, services_of
from sixfold.scaling.spec import RolesSpec, ScalingSpec
from sixfold.scaling.up.load import load_between, steps_between


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One server that takes requests: what it said of its load at the last look, and now; None where it did not answer."""

    before: ServerLoad | None = None
    now: ServerLoad | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One service at one moment.

    Attributes:
        count: Replicas that were ordered.
        servers: Those that take requests.
        num_held: Requests that wait in front for want of a replica.
    """

    count: int
    servers: tuple[Answered, ...] = ()
    num_held: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """How many replicas a service shall have, why, and within what."""

    num_replicas: int
    reason: str
    objective: str


class Sizer(Protocol):
    """Sizes the services of one model; owned by the agent."""

    @property
    def services(self) -> Sequence[RoleService]:
        """What it sizes."""
        ...

    def bounds(self, service: str) -> tuple[int, int]:
        """Fewest and most replicas of a service."""
        ...

    def resize(self, seen: Mapping[str, Seen], now_s: float) -> Mapping[str, Sized]:
        """The sizes of the services that are known; what is left out stays as it is.

        Args:
            seen: By service.
            now_s: Monotonic.
        """
        ...


class OneSizer:
    """A model whose replicas all do the same.

    Args:
        model: Its name.
        spec: How it is scaled.
        state: Of an earlier sizer of the model; None to begin with.
    """

    def __init__(self, model: str, spec: ScalingSpec, state: State | None = None) -> None:
        self.services = services_of(model, has_roles=False)
        self.state = state
        self._model = model
        self._spec = spec

    def bounds(self, service: str) -> tuple[int, int]:
        """See `Sizer`."""
        return self._spec.min_replicas, self._spec.max_replicas

    def resize(self, seen: Mapping[str, Seen], now_s: float) -> Mapping[str, Sized]:
        """See `Sizer`."""
        own = seen[self._model]
        loads = folded(tuple(_load(server, self._model) for server in own.servers), own.count)
        if not loads and not own.num_held and own.count:
            return {}  # the first replicas start, or all were lost: either way the number stays
        fleet = Fleet(loads=loads, num_starting=max(0, own.count - len(loads)), num_held=own.num_held)
        # What it begins with counts as wanted just now: it stays for the delay even if nothing comes.
        state = self.state or State(peaks=((now_s, own.count),))
        decision = decide(self._spec, state, fleet, now_s)
        self.state = decision.state
        objective = f"{self._spec.min_replicas}..{self._spec.max_replicas} replicas"
        sized = Sized(num_replicas=decision.num_replicas, reason=decision.reason, objective=objective)
        return {self._model: sized}


class RolesSizer:
    """A model whose prompts are computed by replicas of their own.

    Args:
        model: Its name.
        spec: How both roles are scaled.
        max_rows: Most sequences in one step of a server.
        state: Of an earlier sizer of the model; None to begin with.
    """

    def __init__(self, model: str, spec: RolesSpec, *, max_rows: float, state: RolesState | None = None) -> None:
        self.services = services_of(model, has_roles=True)
        self.state = state
        self._model = model
        self._spec = spec
        self._max_rows = max_rows

    def bounds(self, service: str) -> tuple[int, int]:
        """See `Sizer`."""
        spec = self._spec
        if service == self._model:
            return spec.decode.min_replicas, spec.max_decode
        return spec.prefill.min_replicas, spec.max_prefill

    def resize(self, seen: Mapping[str, Seen], now_s: float) -> Mapping[str, Sized]:
        """See `Sizer`."""
        decode, prefill = (seen[service.name] for service in self.services)
        current = Roles(num_prefill=prefill.count, num_decode=decode.count)
        state = self.state = self.state or restarted_roles(current, now_s)
        if not decode.servers:  # the first ones start, or all were lost: either way the numbers stay
            self.state = restarted_roles(current, now_s, state)
            return {}
        decision = decide_roles(self._spec, state, self._look(prefill, decode, current), now_s)
        self.state = decision.state
        roles = decision.roles
        return {
            service.name: Sized(
                num_replicas=count, reason=roles.reason or "as it is", objective=self._objective(service.name)
            )
            for service, count in zip(self.services, (roles.num_decode, roles.num_prefill), strict=True)
        }

    def _look(self, prefill: Seen, decode: Seen, current: Roles) -> RolesLook:
        computing, writing = (_works(seen, self._model) for seen in (prefill, decode))
        prompts = [_last_load(server, self._model) for server in prefill.servers]
        streams = [_last_load(server, self._model) for server in decode.servers]
        budgets = [load.steps.budget_units for load in (*prompts, *streams) if load.steps is not None]
        return RolesLook(
            current=current,
            served=RoleDemand(
                prefill_tokens_per_s=sum(each.work.prefill_tokens / each.elapsed_s for each in (*computing, *writing)),
                decode_tokens_per_s=sum(each.work.decode_rows / each.elapsed_s for each in writing),
            ),
            prompts_at_decode_tokens_per_s=sum(each.work.prefill_tokens / each.elapsed_s for each in writing),
            # The one token that a computed prompt ends with is thrown away.
            prefill=_together([replace(each.work, decode_rows=0.0) for each in computing]),
            decode=_together([each.work for each in writing]),
            waiting_tokens=sum(_waiting_units(load) for load in prompts),
            num_streams=sum(load.num_in_flight for load in streams) + decode.num_held,
            is_prefill_up=bool(prefill.servers),
            max_step_tokens=max((budget for budget in budgets if budget > 0.0), default=_STEP_TOKENS),
            max_rows=self._max_rows,
        )

    def _objective(self, service: str) -> str:
        spec, (fewest, most) = self._spec, self.bounds(service)
        return (
            f"ttft_s <= {spec.ttft_s:g}, inter_token_s <= {spec.inter_token_s:g}; {fewest}..{most} replicas, "
            f"{spec.max_replicas} of both roles"
        )


_STEP_TOKENS = 2048.0
"""A step's largest size where no server tells its own."""


def sizer_of(model: str, spec: ScalingSpec | RolesSpec, *, max_rows: float, before: Sizer | None = None) -> Sizer:
    """Who sizes a model's services.

    Args:
        model: Its name.
        spec: How it is scaled.
        max_rows: Most sequences in one step of a server.
        before: Who did until now; what it has seen is not lost where it is of the same kind.
    """
    if isinstance(spec, RolesSpec):
        return RolesSizer(
            model, spec, max_rows=max_rows, state=before.state if isinstance(before, RolesSizer) else None
        )
    return OneSizer(model, spec, before.state if isinstance(before, OneSizer) else None)


def folded(loads: Sequence[ModelLoad], count: int) -> tuple[ModelLoad, ...]:
    """The loads of no more replicas than were ordered.

    Those beyond that leave, or are a second revision on trial: they are no reason to order more, and their requests count.

    Args:
        loads: One each replica.
        count: Replicas that were ordered.
    """
    if count == 0:
        return ()  # they leave; who waits for a new one is counted in front
    kept = list(loads[:count])
    for i, more in enumerate(loads[count:]):
        one = kept[i % count]
        kept[i % count] = msgspec.structs.replace(
            one,
            num_in_flight=one.num_in_flight + more.num_in_flight,
            num_waiting=one.num_waiting + more.num_waiting,
            queued_units=one.queued_units + more.queued_units,
        )
    return tuple(kept)


def _load(server: Answered, model: str) -> ModelLoad:
    """A server that does not answer is up, as the gateway found: only its figure is missing."""
    return ModelLoad(model_name=model) if server.now is None else load_between(server.before, server.now, model)


def _last_load(server: Answered, model: str) -> ModelLoad:
    """Of a server that does not answer what it said last: one that is too busy to answer is not idle."""
    return _load(replace(server, now=server.now or server.before), model)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What one server's steps did between two of its answers, and the seconds from one to the other."""

    work: Measured
    elapsed_s: float


def _works(seen: Seen, model: str) -> Sequence[_Work]:
    """Of each server whose steps did anything. A server may have been silent for many looks: its time is its own."""
    return [
        _Work(work=work, elapsed_s=server.now.at_s - server.before.at_s)
        for server in seen.servers
        if server.before is not None
        and server.now is not None
        and (work := steps_between(server.before, server.now, model)) is not None
    ]


def _together(found: Sequence[Measured]) -> Measured | None:
    """The work of all servers."""
    if not found:
        return None
    return Measured(
        steps=sum(work.steps for work in found),
        prefill_tokens=sum(work.prefill_tokens for work in found),
        decode_rows=sum(work.decode_rows for work in found),
        kv_tokens=0.0,
        seconds=sum(work.seconds for work in found),
    )


def _waiting_units(load: ModelLoad) -> float:
    """Of the admitted work, that of requests which no step has begun with, if all are about as large."""
    return load.queued_units * min(1.0, load.num_waiting / load.num_in_flight) if load.num_in_flight > 0.0 else 0.0
