"""Gives each request a pipeline of its own: a shallow copy whose schedulers are copies and whose modules are stand-ins."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sixfold.core.batching.parked import PipelineSide
from sixfold.core.rendezvous.adapters import Adapters, AdapterSwitch
from sixfold.core.rendezvous.calls import CallOwner, CallRules, ModuleCall, TensorDigests
from sixfold.core.rendezvous.deferred import DeferredCalls
from sixfold.core.rendezvous.lane import Lane
from sixfold.core.rendezvous.proxies import AdaptedModule, BatchedModule, LaneModule, LockedPart

Side = PipelineSide[ModuleCall, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePart:
    """A component of which some methods run in a lane.

    Attributes:
        methods: Run in the lane; with the rules of their calls.
    """

    methods: Mapping[str, CallRules]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlan:
    """What a plugin knows of a pipeline's components.

    Attributes:
        batched: Components whose calls share forwards.
        lanes: Components with methods that run beside the steps.
        locked: Components that are not safe in several threads.
        rules: Of calls, by the class name of the module; the default rules for others.
    """

    batched: frozenset[str]
    lanes: Mapping[str, LanePart] = field(default_factory=dict[str, LanePart])
    locked: frozenset[str] = frozenset()
    rules: Mapping[str, CallRules] = field(default_factory=dict[str, CallRules])

    def rules_of(self, module: torch.nn.Module) -> CallRules:
        """The rules for a module's calls."""
        return self.rules.get(type(module).__name__, CallRules())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ticket:
    """What the stand-ins of one request share; see `PipelineScope.copy_for`."""

    side: Side
    digests: TensorDigests
    variant: Hashable
    owner: CallOwner | None
    adapters: Adapters
    deferred: DeferredCalls | None


class PipelineScope:
    """Makes the pipelines of requests from a loaded one. Thread-safe.

    Args:
        plan: See there.
        lane: For the plan's lanes.
        switches: Of the adapters of modules, by the identity of the module.
        defers: Computes the branches of guidance together also where a pipeline calls its module once for each.
    """

    def __init__(
        self,
        plan: PipelinePlan,
        lane: Lane,
        switches: Mapping[int, AdapterSwitch] | None = None,
        *,
        defers: bool = False,
    ) -> None:
        self._defers = defers
        self._plan = plan
        self._lane = lane
        self._switches = dict(switches or {})
        self._locks: dict[int, threading.RLock] = {}
        self._locks_lock = threading.Lock()

    def with_plan(self, plan: PipelinePlan) -> PipelineScope:
        """A scope with another plan for the same pipelines; requests of both wait for each other at locked parts."""
        other = copy.copy(self)
        other._plan = plan
        return other

    def copy_for(
        self,
        pipeline: Any,
        side: Side,
        *,
        variant: Hashable = None,
        owner: CallOwner | None = None,
        adapters: Adapters = (),
        scheduler: Callable[[Any], Any] = copy.deepcopy,
    ) -> Any:
        """A pipeline for one request; the loaded one is not changed.

        Args:
            pipeline: Loaded, with its ``components`` as attributes.
            side: Of the request's thread.
            variant: Must be equal for calls to merge.
            owner: Whose calls they are.
            adapters: With which its modules run, those that have them.
            scheduler: Makes the request's own from the loaded scheduler: each keeps the state of one loop.
        """
        scoped = copy.copy(pipeline)
        ticket = _Ticket(
            side=side,
            digests=TensorDigests(),
            variant=variant,
            owner=owner,
            adapters=adapters,
            deferred=DeferredCalls(side.call) if self._defers and variant is None else None,
        )
        for name, part in pipeline.components.items():
            stand_in = scheduler(part) if hasattr(part, "set_timesteps") else self._stand_in(name, part, ticket)
            if stand_in is not part:
                scoped.__dict__[name] = stand_in
        # At its end a pipeline resets the state of every shared module, and with it the others' caches.
        scoped.__dict__["maybe_free_model_hooks"] = lambda: None
        if hasattr(scoped, "set_progress_bar_config"):
            scoped.__dict__["_progress_bar_config"] = {"disable": True}
        return scoped

    def _stand_in(self, name: str, part: Any, ticket: _Ticket) -> Any:
        plan = self._plan
        if name in plan.locked and part is not None:
            return LockedPart(part, self._lock_of(part))
        if not isinstance(part, torch.nn.Module):
            return part
        switch = self._switches.get(id(part))
        adapters = ticket.adapters if switch is not None else ()
        side, digests, variant = ticket.side, ticket.digests, ticket.variant
        if name in plan.batched:
            rules = plan.rules_of(part)
            return BatchedModule(
                part,
                side,
                rules,
                digests,
                variant=variant,
                owner=ticket.owner,
                adapters=adapters,
                deferred=ticket.deferred,
            )
        if name in plan.lanes:
            return LaneModule(part, side, self._lane, digests, plan.lanes[name].methods, variant=variant)
        return part if switch is None else AdaptedModule(part, switch, adapters)

    def _lock_of(self, part: Any) -> threading.RLock:
        with self._locks_lock:
            return self._locks.setdefault(id(part), threading.RLock())
