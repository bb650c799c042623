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
from sixfold.core.rendezvous.proxies import AdaptedModule, BatchedModule, KeptModule, LaneModule, LockedPart

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
        kept: Modules that a pipeline moves to the device and away around each use; they stay where they are.
        alone: Methods of the pipeline that change a shared component while they run. They must not call what is batched.
        rules: Of calls, by the class name of the module; the default rules for others.
    """

    batched: frozenset[str]
    lanes: Mapping[str, LanePart] = field(default_factory=dict[str, LanePart])
    kept: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()
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
        self._lock = threading.RLock()  # one for all tokenizers: a processor may hold one that is a component, too
        self._alone = threading.RLock()

    def with_plan(self, plan: PipelinePlan) -> PipelineScope:
        """A scope with another plan for the same pipelines; requests of both wait for each other at what is locked."""
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
            if hasattr(part, "set_timesteps"):
                stand_in = scheduler(part)
            elif hasattr(part, "set_state") and hasattr(part, "prepare_inputs"):  # a guider, which knows the step, too
                stand_in = copy.deepcopy(part)
            else:
                stand_in = self._stand_in(name, part, ticket)
            if stand_in is not part:
                scoped.__dict__[name] = stand_in
        for name in self._plan.alone:
            if (method := getattr(scoped, name, None)) is not None:
                scoped.__dict__[name] = _one_at_a_time(method, self._alone)
        # At its end a pipeline resets the state of every shared module, and with it the others' caches.
        scoped.__dict__["maybe_free_model_hooks"] = lambda: None
        if hasattr(scoped, "set_progress_bar_config"):
            scoped.__dict__["_progress_bar_config"] = {"disable": True}
        return scoped

    def _stand_in(self, name: str, part: Any, ticket: _Ticket) -> Any:
        plan = self._plan
        if not isinstance(part, torch.nn.Module):
            return LockedPart(part, self._lock) if _tokenizes(part) else part
        if name in plan.kept:
            return KeptModule(part)
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


def _tokenizes(part: Any) -> bool:
    """Whether it is a tokenizer or holds one, as processors do: transformers' fast ones keep padding as a setting."""
    return hasattr(part, "padding_side") or hasattr(part, "tokenizer")


def _one_at_a_time(method: Callable[..., Any], lock: threading.RLock) -> Callable[..., Any]:
    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return method(*args, **kwargs)

    return locked
