"""Says before anything loads what the models of a configuration will take, whether it fits, and what to change if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sixfold.core.errors import SixfoldError
from sixfold.core.memory.forecast import forecast
from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.memory.machine import Machine
from sixfold.core.memory.need import HOST, Claim, MemoryKind, format_bytes
from sixfold.core.registry import ResolvedModel

SERVER_BYTES = 128 << 20
"""The serving process: measured with six modalities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What one model will take.

    Attributes:
        name: Of its entry.
        family: That serves it.
        device: Where it goes.
        num_replicas: Processes that hold it.
        on_demand: Whether it is loaded by its first request only.
        claims: What all replicas take.
        cache_tokens: Tokens that the caches of all replicas hold; None where they hold none.
        cache_option: The option that sets the size of its cache; empty if there is none.
        fits: Whether it is in memory beside the models before it; on demand, whether it fits beside the server alone.
        short_bytes: What is missing on each device, if it does not fit.
        ranks: How its ranks divide a step; empty for one process a replica.
        rank_reasons: Why so.
    """

    name: str
    family: str
    device: str
    num_replicas: int
    on_demand: bool
    claims: tuple[Claim, ...]
    cache_tokens: int | None
    cache_option: str
    fits: bool
    short_bytes: Mapping[str, int]
    ranks: str = ""
    rank_reasons: tuple[str, ...] = ()

    def num_bytes(self, kind: MemoryKind) -> int:
        """All claims of one kind."""
        return sum(claim.num_bytes for claim in self.claims if claim.kind is kind)

    def on(self, device: str) -> int:
        """All claims on one device."""
        return sum(claim.num_bytes for claim in self.claims if claim.device == device)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """What a device has, and what the models that load when the server starts take of it."""

    name: str
    total_bytes: int
    claimed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole configuration.

    Attributes:
        models: In the order in which they load.
        devices: Of the machine.
        problems: Of models whose needs could not be found out.
        advice: What to change, where something does not fit.
    """

    models: tuple[ModelPlan, ...]
    devices: tuple[DevicePlan, ...]
    problems: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the server will come up with all its models."""
        return not self.problems and all(model.fits for model in self.models)


@dataclass(slots=True)
class _Planner:
    """Fills one ledger as a starting server does."""

    machine: Machine
    ledger: MemoryLedger
    models: list[ModelPlan] = field(default_factory=list[ModelPlan])
    problems: list[str] = field(default_factory=list[str])
    advice: list[str] = field(default_factory=list[str])

    def add(self, resolved: ResolvedModel) -> None:
        entry = resolved.entry
        device = self.machine.resolve(entry.device)
        if self.machine.device(device) is None:
            self.problems.append(
                f"models.{entry.name}.device: this machine has no {device}. Set another device, or describe the machine "
                f"that is meant with --device {device}=SIZE."
            )
            return
        on_demand = entry.load == "on_demand"
        free = _alone(self.ledger) if on_demand else self.ledger.free()
        expected = forecast(resolved, self.machine, free_bytes=max(0, free[device]))
        claims = expected.claims(free, num_replicas=entry.replicas)
        taken = {name: sum(c.num_bytes for c in claims if c.device == name) for name in free}
        short = {name: taken[name] - free[name] for name in free if taken[name] > max(0, free[name])}
        token_bytes = expected.need.cache_token_bytes
        cache_bytes = sum(claim.num_bytes for claim in claims if claim.kind is MemoryKind.CACHE)
        plan = ModelPlan(
            name=entry.name,
            family=resolved.family.name,
            device=device,
            num_replicas=entry.replicas,
            on_demand=on_demand,
            claims=claims,
            cache_tokens=cache_bytes // token_bytes if token_bytes else None,
            cache_option=expected.need.cache_option,
            fits=not short,
            short_bytes=short,
            ranks="" if expected.parallel is None else str(expected.parallel.degrees),
            rank_reasons=() if expected.parallel is None else expected.parallel.reasons,
        )
        self.models.append(plan)
        if short:
            self.advice.extend(_advice(plan, self.models, self.ledger))
        elif not on_demand:
            self.ledger.claim(entry.name, entry.name, claims)


def plan_models(models: Sequence[ResolvedModel], machine: Machine) -> Plan:
    """Plans a server of these models on this machine. Blocks while headers are read.

    Args:
        models: With their files.
        machine: The devices.
    """
    ledger = MemoryLedger({device.name: device.total_bytes for device in machine.devices})
    ledger.claim(None, "the server itself", [Claim(device=HOST, kind=MemoryKind.PROCESS, num_bytes=SERVER_BYTES)])
    planner = _Planner(machine, ledger)
    for resolved in sorted(models, key=lambda model: -model.entry.priority):
        try:
            planner.add(resolved)
        except SixfoldError as error:
            planner.problems.append(f"models.{resolved.entry.name}: {error}")
    free = ledger.free()
    return Plan(
        models=tuple(planner.models),
        devices=tuple(
            DevicePlan(name=name, total_bytes=total, claimed_bytes=total - free[name])
            for name, total in ledger.capacities.items()
        ),
        problems=tuple(planner.problems),
        advice=tuple(planner.advice),
    )


def _alone(ledger: MemoryLedger) -> dict[str, int]:
    """What is free where all models have gone."""
    return {name: total - (SERVER_BYTES if name == HOST else 0) for name, total in ledger.capacities.items()}


def _advice(plan: ModelPlan, models: Sequence[ModelPlan], ledger: MemoryLedger) -> list[str]:
    """What would make one model fit beside those that were planned before it, the least change first."""
    found: list[str] = []
    for device, short in plan.short_bytes.items():
        place = f"models.{plan.name}"
        alone = plan.on(device) <= _alone(ledger)[device]
        changes = [
            change for m in models if m is plan or not plan.on_demand for change in _smaller_cache(m, device, short)
        ]
        if plan.num_replicas > 1:
            changes.append(f"lower {place}.replicas")
        if alone and not plan.on_demand:
            changes.append(f"set {place}.load to on_demand, so that it takes turns with the others")
        changes.append("take a smaller model or type, or another device")
        found.append(
            f"{place} needs {format_bytes(plan.on(device))} of {device}, {format_bytes(short)} more than is free there "
            f"({ledger.explain(device)}): {'; or '.join(changes)}."
        )
    return found


def _smaller_cache(model: ModelPlan, device: str, short: int) -> list[str]:
    """The option that gives so much back, where an eighth of the cache at least would be left."""
    whole = model.num_bytes(MemoryKind.CACHE)
    if device != model.device or not model.cache_option or whole - short < whole // 8:
        return []
    cache = (whole - short) // model.num_replicas
    return [f"set models.{model.name}.options.{model.cache_option} to at most {cache} ({format_bytes(cache)})"]
