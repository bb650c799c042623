"""Times ways of doing one thing in turns, and notes what an optimisation gave as `optimisations.py` reads it."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Switch = Callable[[], contextlib.AbstractContextManager[Any]]
"""Opens a context in which something is on."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way of doing it.

    Attributes:
        run: Does it once.
        switch: Entered around each visit, outside of what is timed.
    """

    run: Callable[[], object]
    switch: Switch = contextlib.nullcontext


def wait() -> None:
    """Returns when the card has done all that it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleave(ways: Mapping[str, Way], *, rounds: int, calls: int = 1, warms: bool = True) -> dict[str, float]:
    """Median seconds of a call by way. Each has its turn in each round, another one first each time, so that a machine
    whose speed drifts hits all alike.

    Args:
        ways: By name. One that fails is said and left out, so that the others' figures are not lost.
        rounds: That count; one before them, where kernels are compiled and chosen, does not.
        calls: Back to back at each visit.
        warms: Whether one that is not counted goes before them.
    """
    names = list(ways)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            if name not in times:
                continue
            try:
                seconds = _visit(ways[name], calls, warms)
            except Exception as error:  # one way that a library can't do must not end the run
                print(f"{name} failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
                del times[name]
                continue
            if number:
                times[name].append(seconds)
    return {name: statistics.median(found) for name, found in times.items()}


def _visit(way: Way, calls: int, warms: bool) -> float:
    with way.switch():
        if warms:
            way.run()
        wait()
        began_s = time.perf_counter()
        for _ in range(calls):
            way.run()
        wait()
        return (time.perf_counter() - began_s) / calls


@dataclass(slots=True)
class Notes:
    """What a run found; written after each figure, so that a run that is cut off keeps what it has.

    Attributes:
        out: The file.
        about: Card and versions.
        seconds: Medians of every way, by shape, of which the rows are made.
    """

    out: Path
    about: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    def keep(self, shape: str, found: Mapping[str, float]) -> None:
        """All medians of a shape."""
        self.seconds[shape] = dict(found)
        print(shape, json.dumps({name: round(1e3 * value, 3) for name, value in found.items()}), "ms", flush=True)
        self.write()

    def pairs(self, shape: str, found: Mapping[str, float], pairs: Sequence[tuple[str, str, str]], **more: Any) -> None:
        """Rows of (optimisation, way without, way with); those with a way that failed are left out.

        Args:
            shape: Of the model and the input.
            found: Seconds by way.
            pairs: Keys are of `optimisation_list.py`.
            more: See `add`.
        """
        for key, off, on in pairs:
            if off in found and on in found:
                self.add(key, shape, off=1e3 * found[off], on=1e3 * found[on], base=off, **more)

    def add(
        self, key: str, shape: str, *, off: float, on: float, unit: str = "ms", base: str = "", note: str = ""
    ) -> None:
        """One row.

        Args:
            key: Of `optimisation_list.py`.
            shape: Of the model and the input.
            off: Without it; milliseconds, or of a unit that ends in "/s", where more is better.
            on: With it.
            unit: Of both.
            base: What is on without it.
            note: To be said beside.
        """
        times = on / off if unit.endswith("/s") else off / on
        row = {"key": key, "shape": shape, "off": off, "on": on, "unit": unit, "times": times}
        self.rows.append(row | {"base": base, "note": note})
        print("ROW", json.dumps(self.rows[-1]), flush=True)
        self.write()

    def write(self) -> None:
        """See `Notes`."""
        document = {**self.about, "optimisations": self.rows, "seconds": self.seconds}
        self.out.write_text(json.dumps(document, indent=1) + "\n")
