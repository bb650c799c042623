"""``sixfold plan``: what the models of a configuration will take of this machine's memory, or of another one's."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path

import msgspec

from sixfold.core.cli.listing import table
from sixfold.core.cli.progress import ProgressReport
from sixfold.core.config import Settings, load_config
from sixfold.core.errors import ConfigError, UsageError
from sixfold.core.memory.machine import read_machine, with_devices
from sixfold.core.memory.need import MemoryKind, format_bytes
from sixfold.core.memory.plan import ModelPlan, Plan, plan_models
from sixfold.core.plugins import Plugins
from sixfold.core.registry import ResolvedModel, resolve_entry

EXIT_DOES_NOT_FIT = 1

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_DEVICE = re.compile(r"(cpu|cuda:\d+)=(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)


def configure_plan(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sixfold plan``."""
    parser.add_argument("config", type=Path, help="YAML file with 'models:'")
    parser.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="NAME=SIZE",
        help="plan for a device of this size, such as cuda:0=80GiB, in place of this machine's; may be repeated",
    )


def run_plan(plugins: Plugins, args: argparse.Namespace) -> int:
    """Prints the plan; the status is 0 if everything fits and 1 if not.

    Raises:
        UsageError: The configuration or an argument is wrong.
    """
    sizes = dict(_device_size(text) for text in args.device)
    settings = load_config(args.config)
    machine = with_devices(read_machine(settings.memory_limits_bytes), sizes)
    resolved, problems = _resolve(settings, plugins)
    plan = plan_models(resolved, machine)
    plan = dataclasses.replace(plan, problems=(*problems, *plan.problems))
    print(plan_json(plan) if args.json else "\n".join(plan_lines(plan)))
    return 0 if plan.fits else EXIT_DOES_NOT_FIT


def _resolve(settings: Settings, plugins: Plugins) -> tuple[list[ResolvedModel], list[str]]:
    """Fetches what is not there yet: the headers are in the files."""
    found: list[ResolvedModel] = []
    problems: list[str] = []
    with ProgressReport(sys.stderr) as report:
        for entry in settings.models.values():
            try:
                found.append(resolve_entry(entry, plugins, settings.cache_dir, report.update))
            except UsageError as error:
                problems.append(f"models.{entry.name}: {str(error).removeprefix(f'models.{entry.name}: ')}")
    return found, problems


def _device_size(text: str) -> tuple[str, int]:
    match = _DEVICE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--device {text}: must be a name and a size, such as cuda:0=80GiB or cpu=16GiB.")
    name, number, unit = match.groups()
    return name.lower(), int(float(number) * _UNITS[(unit or "").lower()])


def plan_lines(plan: Plan) -> list[str]:
    """The plan as text: a row per model, the devices, then what is wrong and what to do."""
    rows = [_row(model) for model in plan.models]
    lines = table(("MODEL", "FAMILY", "DEVICE", "WEIGHTS", "CACHE", "WORKING", "PROCESS", "TOTAL", "FITS"), rows)
    lines.append("")
    for device in plan.devices:
        free = device.total_bytes - device.claimed_bytes
        lines.append(
            f"{device.name}: {format_bytes(device.claimed_bytes)} of {format_bytes(device.total_bytes)} taken when the "
            f"server has started, {format_bytes(free)} free"
        )
    for model in (model for model in plan.models if model.ranks):
        lines += ["", f"{model.name} runs as {model.ranks}: {'; '.join(model.rank_reasons)}."]
    for text in (*plan.problems, *plan.advice):
        lines += ["", text]
    return lines


def _row(model: ModelPlan) -> tuple[str, ...]:
    def size(kind: MemoryKind) -> str:
        num_bytes = model.num_bytes(kind)
        return format_bytes(num_bytes) if num_bytes else "-"

    cache = size(MemoryKind.CACHE)
    if model.cache_tokens is not None:
        cache += f" ({model.cache_tokens} tokens)"
    copies = f" x{model.num_replicas}" if model.num_replicas > 1 else ""
    total = sum(claim.num_bytes for claim in model.claims)
    fits = "no" if not model.fits else "alone, on demand" if model.on_demand else "yes"
    return (
        model.name + copies,
        model.family,
        model.device,
        size(MemoryKind.WEIGHTS),
        cache,
        size(MemoryKind.WORKING),
        size(MemoryKind.PROCESS),
        format_bytes(total),
        fits,
    )


def plan_json(plan: Plan) -> str:
    """The plan for machines; sizes in bytes."""
    data = msgspec.to_builtins(plan)
    data["fits"] = plan.fits
    return msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
