"""Reads public traces of requests, and makes longer and larger ones of them."""

from __future__ import annotations

import csv
import gzip
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TextIO

from sixfold.core.errors import ConfigError
from sixfold.scaling.sim.request import TraceRequest


def read_trace(path: Path, *, limit: int | None = None) -> tuple[TraceRequest, ...]:
    """The requests of a trace, by arrival; the first arrives at 0 s.

    Args:
        path: CSV, or CSV packed with gzip. Azure's columns (TIMESTAMP, ContextTokens, GeneratedTokens) or Mooncake's
            (timestamp_ms, input_length, output_length, hash_ids_rle: runs ``a-b`` of block names, both ends included).
        limit: Only the first so many.

    Raises:
        ConfigError: The file cannot be read or is no trace; says what is expected.
    """
    try:
        with _open(path) as file:
            requests = tuple(itertools.islice(_rows(csv.DictReader(file), path), limit))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"The trace {path} cannot be read: {error}. Check the path.") from error
    if not requests:
        raise ConfigError(f"The trace {path} holds no requests.")
    start_s = min(request.arrived_s for request in requests)
    moved = (replace(request, arrived_s=request.arrived_s - start_s) for request in requests)
    return tuple(sorted(moved, key=lambda request: request.arrived_s))


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[TraceRequest]:
    columns = frozenset(reader.fieldnames or ())
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= columns:
        read = _azure
    elif {"timestamp_ms", "input_length", "output_length", "hash_ids_rle"} <= columns:
        read = _mooncake
    else:
        raise ConfigError(
            f"The trace {path} has the columns {', '.join(sorted(columns)) or 'none'}. Expected: TIMESTAMP, ContextTokens and "
            "GeneratedTokens, or timestamp_ms, input_length, output_length and hash_ids_rle."
        )
    for row in reader:
        try:
            yield read(row)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}:{reader.line_num}: not a request of a trace: {error}.") from error


def _azure(row: dict[str, str]) -> TraceRequest:
    # Seven digits of a second's fraction; datetime reads six.
    arrived = datetime.strptime(row["TIMESTAMP"][:26], "%Y-%m-%d %H:%M:%S.%f")
    return TraceRequest(
        arrived_s=(arrived - datetime(2023, 1, 1)).total_seconds(),
        prompt_tokens=max(1, int(row["ContextTokens"])),
        output_tokens=max(1, int(row["GeneratedTokens"])),
    )


def _mooncake(row: dict[str, str]) -> TraceRequest:
    blocks: list[int] = []
    for run in row["hash_ids_rle"].split():
        first, _, last = run.partition("-")
        blocks += range(int(first), int(last or first) + 1)
    return TraceRequest(
        arrived_s=int(row["timestamp_ms"]) / 1000,
        prompt_tokens=max(1, int(row["input_length"])),
        output_tokens=max(1, int(row["output_length"])),
        blocks=tuple(blocks),
    )


def with_rate(trace: Sequence[TraceRequest], factor: float) -> tuple[TraceRequest, ...]:
    """The same requests, arriving ``factor`` times as fast."""
    return tuple(replace(request, arrived_s=request.arrived_s / factor) for request in trace)


def several_tenants(trace: Sequence[TraceRequest], num_tenants: int, seed: int) -> tuple[TraceRequest, ...]:
    """The load of several tenants, each with the trace turned by a random time: bursts overlap as independent ones do."""
    duration_s = trace[-1].arrived_s
    turns = random.Random(seed)
    requests: list[TraceRequest] = []
    for _ in range(num_tenants):
        turn_s = turns.uniform(0.0, duration_s)
        requests += (replace(each, arrived_s=(each.arrived_s + turn_s) % duration_s) for each in trace)
    return tuple(sorted(requests, key=lambda request: request.arrived_s))


def synthetic_day(
    trace: Sequence[TraceRequest], *, hours: float, low: float, seed: int, peak_hour: float = 14.0
) -> tuple[TraceRequest, ...]:
    """A day made of an hour: the trace repeated, thinned along a cosine with its height at ``peak_hour``.

    It keeps the trace's bursts and lengths; the shape of the day is invented.

    Args:
        trace: What is repeated.
        hours: Length of the result; 24 hours have one peak.
        low: Load at the lowest hour, as a part of the load at the highest.
        seed: Draws which requests stay.
        peak_hour: Of the highest load.
    """
    draws = random.Random(seed)
    duration_s = trace[-1].arrived_s + 1.0
    requests: list[TraceRequest] = []
    for turn in itertools.count():
        for each in trace:
            at_s = each.arrived_s + turn * duration_s
            if at_s >= hours * 3600:
                return tuple(requests)
            wave = (1 + math.cos(2 * math.pi * (at_s / 3600 - peak_hour) / 24)) / 2
            if draws.random() < low + (1 - low) * wave:
                requests.append(replace(each, arrived_s=at_s))
    raise AssertionError("the loop ends by its return")


def with_origins(trace: Sequence[TraceRequest], shares: dict[str, float], seed: int) -> tuple[TraceRequest, ...]:
    """The same requests, each from a site that is drawn by the sites' shares."""
    draws = random.Random(seed)
    names, weights = list(shares), list(shares.values())
    return tuple(replace(each, origin=draws.choices(names, weights)[0]) for each in trace)


def spiked(
    trace: Sequence[TraceRequest], *, at_s: float, duration_s: float, factor: float, seed: int
) -> tuple[TraceRequest, ...]:
    """The trace with ``factor`` times its load during a spike: requests of that time come again, at random moments of it."""
    draws = random.Random(seed)
    inside = [each for each in trace if at_s <= each.arrived_s < at_s + duration_s]
    extra = [
        replace(draws.choice(inside), arrived_s=at_s + draws.random() * duration_s)
        for _ in range(round(len(inside) * (factor - 1)))
    ]
    return tuple(sorted((*trace, *extra), key=lambda request: request.arrived_s))
