"""``sixfold quantize-report``: a model beside itself with fewer bits, as a table or as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import JsonValue

from sixfold.core.cli.listing import table
from sixfold.core.cli.progress import ProgressReport
from sixfold.core.config import ModelEntry, absolute_source, default_cache_dir, load_config
from sixfold.core.errors import ConfigError, UsageError
from sixfold.core.family import LoadContext
from sixfold.core.plugins import Plugins
from sixfold.core.registry import ResolvedModel, resolve_entry
from sixfold.core.runtime.quantization.policy import QuantizationPolicy, Scheme, What
from sixfold.core.validation import did_you_mean, validate

_MEBIBYTE = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sixfold quantize-report``."""
    parser.add_argument("model", metavar="MODEL", help="a source such as hf:org/repo; with --config, an entry's name")
    parser.add_argument(
        "--config", type=Path, help="YAML file whose entry MODEL is, with its family, options and policy"
    )
    parser.add_argument("--family", help="family, where the files do not tell")
    parser.add_argument("--scheme", choices=get_args(Scheme), help="type of the numbers (the entry's, else int8)")
    parser.add_argument("--what", choices=get_args(What), help="what is kept in fewer bits (weights)")
    parser.add_argument(
        "--skip", action="append", metavar="RULE", help="a skip rule, such as attention; may be repeated"
    )
    parser.add_argument("--inputs", type=Path, help="what to measure on, instead of what comes with the family")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="CPU threads; all that it may use unless given")
    parser.add_argument("--whole", action="store_true", help="only the policy as a whole, no groups of layers")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def run(plugins: Plugins, args: argparse.Namespace) -> int:
    """Runs ``sixfold quantize-report`` and returns its exit status."""
    entry, cache_dir = _entry(args)
    policy = _policy(args, entry)
    entry = entry.model_copy(update={"quantization": policy})
    with ProgressReport(sys.stderr) as progress:
        resolved = resolve_entry(entry, plugins, cache_dir, progress.update)
    if not resolved.family.quality:
        measured = sorted(family.name for family in plugins.families.values() if family.quality)
        raise ConfigError(f"{resolved.family.name} measures no quality. These do: {', '.join(measured)}.")
    report = _measure(resolved, policy, args)
    print(json.dumps(report, indent=2) if args.json else "\n".join(text_lines(report)))
    return 0


def _entry(args: argparse.Namespace) -> tuple[ModelEntry, Path]:
    name: str = args.model
    if args.config is None:
        data: dict[str, JsonValue] = {
            "name": "model",
            "source": absolute_source(name, Path.cwd()),
            "family": args.family,
        }
        return validate(ModelEntry, data, prefix=("MODEL",)), default_cache_dir()
    settings = load_config(args.config)
    if name not in settings.models:
        raise UsageError(f"{args.config} has no model {name!r}. {did_you_mean(name, settings.models)}")
    entry = settings.models[name]
    return entry.model_copy(update={"family": args.family or entry.family}), settings.cache_dir


def _policy(args: argparse.Namespace, entry: ModelEntry) -> QuantizationPolicy:
    """The entry's policy, overridden by flags."""
    written = {} if entry.quantization is None else entry.quantization.model_dump(exclude_unset=True)
    given = {"scheme": args.scheme, "what": args.what, "skip": args.skip}
    return validate(
        QuantizationPolicy, {"scheme": "int8"} | written | {k: v for k, v in given.items() if v is not None}
    )


def _measure(resolved: ResolvedModel, policy: QuantizationPolicy, args: argparse.Namespace) -> dict[str, Any]:
    # These import torch, which a person who only asks for --help need not wait for.
    from sixfold.core.runtime.devices import resolve_device
    from sixfold.core.runtime.quantization.quality import QualityProbe
    from sixfold.core.runtime.quantization.report import measure

    module, _, name = resolved.family.quality.partition(":")
    context = LoadContext(
        model_name=resolved.entry.name,
        path=resolved.path,
        device=resolve_device(resolved.entry.device),
        num_threads=args.threads,
        options=resolved.options,
    )
    probe = cast("QualityProbe", getattr(importlib.import_module(module), name)(context, args.inputs))
    rows: list[dict[str, Any]] = []
    for row in measure(
        probe,
        policy,
        by_group=not args.whole,
        report=lambda what: print(f"measuring {what}", file=sys.stderr, flush=True),
    ):
        figures = {name: round(value, 6) for name, value in row.quality.figures.items()}
        rows.append(
            {
                "quantized": row.name,
                "layers": row.num_layers,
                "weight_bytes": row.quality.weight_bytes,
                "figures": figures,
            }
        )
    return {
        "model": resolved.entry.source,
        "family": resolved.family.name,
        "device": context.device,
        "policy": policy.model_dump(mode="json", exclude_unset=True),
        "inputs": probe.inputs_text,
        "rows": rows,
    }


def text_lines(report: dict[str, Any]) -> list[str]:
    """The report as people read it."""
    rows: Sequence[dict[str, Any]] = report["rows"]
    names = list(rows[0]["figures"])
    header = ("QUANTIZED", "LAYERS", "MIB", *(name.upper() for name in names))
    cells = [
        (
            row["quantized"],
            str(row["layers"]),
            f"{row['weight_bytes'] / _MEBIBYTE:.1f}",
            *(f"{row['figures'][name]:.4g}" if name in row["figures"] else "-" for name in names),
        )
        for row in rows
    ]
    policy = json.dumps(report["policy"])
    return [
        f"{report['model']} ({report['family']} on {report['device']}), {policy}",
        f"measured on {report['inputs']}",
        "",
        *table(header, cells),
    ]
