"""Availability by arithmetic: how often what fails, how long until nobody is sent there, what is missing until it is back.

The share of requests that fail in a year is a sum over kinds of failures. One failure of a unit that serves ``share`` of the
requests costs, in seconds of a full outage::

    share * mean_s * unreplayable                   what was in flight and must not be sent twice
  + share * detect_s * fails_until_detected         what is sent there until nobody is
  + restore_s * shortage(share)                     what the rest has no room for until the unit is back

with ``shortage(share)`` the mean over a day of the load that exceeds what is left. Failures are taken to be independent and
rare, so that their costs add up; what is not independent is a kind of its own. Figures come from who calls.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sixfold.core.errors import ConfigError
from sixfold.scaling.spec import Share

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

YEAR_S = 365.25 * 86400.0
_STEPS_OF_A_DAY = 288
_AT_FIRST_S = 5.0
"""Requests that arrive so long after a loss may meet it: two lives of a lease."""

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Part = Annotated[float, Field(ge=0, le=1)]
MEASURED = "measured"


class LoadSettings(BaseModel):
    """How busy the fleet is, as a share of what it can do; over a day it goes up and down like a cosine."""

    model_config = _FROZEN

    peak: Share = 0.6
    """At the busiest hour."""

    low: Part = 0.2
    """At night."""


class RequestSettings(BaseModel):
    """What requests are like."""

    model_config = _FROZEN

    mean_s: NotNegative = 2.0
    """Mean time of one; so long before a loss those arrived that are in flight."""

    unreplayable: Part = 0.0
    """Share that must not be sent twice (new videos, stored responses), or are streams that cannot go on elsewhere."""


class FailureSettings(BaseModel):
    """One kind of failure."""

    model_config = _FROZEN

    per_year: NotNegative
    """How often one unit fails."""

    units: Annotated[int, Field(ge=1)] = 1
    """How many units there are."""

    share: Part
    """Share of all requests that one unit serves, and of the capacity that is gone with it."""

    detect_s: NotNegative
    """Time until no request is sent there."""

    fails_until_detected: Part | Literal["measured"] = 1.0
    """Share of the requests sent there until then that fail for the client: 0 where another unit answers in its place.
    ``measured``: at most what the measurement allows to say."""

    restore_s: NotNegative | Literal["measured"]
    """Time until its capacity is back. ``measured``: of the measurement."""

    shortage: Part | None = None
    """Share of all requests without room until then; null: what the load says."""

    source: str
    """Where the figures come from: a measurement, a publication, or that it is an assumption."""


class AvailabilitySettings(BaseModel):
    """A failure model."""

    model_config = _FROZEN

    objective: Share = 0.9999
    """Share of requests that must not fail."""

    load: LoadSettings = LoadSettings()
    """How busy the fleet is."""

    requests: RequestSettings = RequestSettings()
    """What requests are like."""

    measured: Path | None = None
    """Result of ``bench/region_loss.py``, for what says ``measured``. Relative to this file."""

    failures: Annotated[dict[str, FailureSettings], Field(min_length=1)]
    """All kinds of failures, by name."""

    what_if: dict[str, dict[str, Any]] = {}
    """Changes of the keys above that are computed, too, by name."""

    @model_validator(mode="after")
    def _has_its_measurement(self) -> Self:
        asks = [name for name, each in self.failures.items() if MEASURED in (each.restore_s, each.fails_until_detected)]
        if asks and self.measured is None:
            raise ValueError(
                f"failures.{asks[0]} says 'measured', and nothing was. Set measured to a result of bench/region_loss.py."
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a measured loss of a region says.

    Attributes:
        num_exposed: Requests that were in flight at the loss or came within five seconds of it.
        num_failed: Those of all requests that failed for a client.
        restore_s: Until as many replicas as before were there.
    """

    num_exposed: int
    num_failed: int
    restore_s: float

    @property
    def fails(self) -> float:
        """Largest share that may fail and would still look like this one time in twenty: 3 / n where none of n did."""
        return min(1.0, (self.num_failed + 3.0 * math.sqrt(self.num_failed + 1.0)) / max(1, self.num_exposed))


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind of failure costs in a year.

    Attributes:
        name: The kind.
        per_year: Failures of all units together.
        each_s: One failure, in seconds of a full outage.
        source: Where its figures come from.
    """

    name: str
    per_year: float
    each_s: float
    source: str

    @property
    def year_s(self) -> float:
        """All of a year."""
        return self.per_year * self.each_s


def shortage(share: float, load: LoadSettings) -> float:
    """Share of a day's requests without room while ``share`` of the capacity is gone."""
    wanted = [
        load.low + (load.peak - load.low) * (0.5 - 0.5 * math.cos(2.0 * math.pi * step / _STEPS_OF_A_DAY))
        for step in range(_STEPS_OF_A_DAY)
    ]
    return sum(max(0.0, each - (1.0 - share)) for each in wanted) / sum(wanted) if any(wanted) else 0.0


def costs(settings: AvailabilitySettings, measured: Measured | None) -> tuple[Cost, ...]:
    """What each kind costs, the dearest first."""
    found = [
        Cost(
            name=name,
            per_year=failure.per_year * failure.units,
            each_s=_each_s(failure, settings, measured),
            source=failure.source,
        )
        for name, failure in settings.failures.items()
    ]
    return tuple(sorted(found, key=lambda cost: (-cost.year_s, cost.name)))


def availability(found: Sequence[Cost]) -> float:
    """Share of a year's requests that do not fail; never below 0."""
    return max(0.0, 1.0 - sum(cost.year_s for cost in found) / YEAR_S)


def _each_s(failure: FailureSettings, settings: AvailabilitySettings, measured: Measured | None) -> float:
    fails, restore_s = failure.fails_until_detected, failure.restore_s
    if isinstance(fails, str):
        assert measured is not None  # settings that say so name a measurement
        fails = measured.fails
    if isinstance(restore_s, str):
        assert measured is not None  # as above
        restore_s = measured.restore_s
    missing = shortage(failure.share, settings.load) if failure.shortage is None else failure.shortage
    in_flight_s = failure.share * settings.requests.mean_s * settings.requests.unreplayable
    return in_flight_s + failure.share * failure.detect_s * fails + restore_s * missing


def variants(settings: AvailabilitySettings) -> Mapping[str, AvailabilitySettings]:
    """The settings of every ``what_if``.

    Raises:
        ConfigError: A change names what is not there.
    """
    plain = settings.model_dump(exclude={"what_if"})
    found: dict[str, AvailabilitySettings] = {}
    for name, change in settings.what_if.items():
        try:
            found[name] = AvailabilitySettings.model_validate(_changed(plain, change))
        except (ValueError, KeyError) as error:
            raise ConfigError(f"availability.what_if.{name}: {error}. Change keys that are there.") from error
    return found


def read_measured(path: Path) -> Measured:
    """Reads a result of ``bench/region_loss.py``.

    Raises:
        ConfigError: It is none, or its replicas did not come back.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        loss_s, samples = float(data["loss_s"]), data["samples"]
        counts = [(float(each["at_s"]), sum(each["regions"].values())) for each in data["replicas"]]
        all_of_them = counts[0][1]
        fewer_s = next(at_s for at_s, count in counts if at_s > loss_s and count < all_of_them)
        whole_s = next(at_s for at_s, count in counts if at_s > fewer_s and count >= all_of_them)
        exposed = [s for s in samples if s["due_s"] + s["took_s"] > loss_s and s["due_s"] < loss_s + _AT_FIRST_S]
        failed = [sample for sample in samples if sample["error"] is not None]
    except (OSError, ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
        raise ConfigError(
            f"availability.measured: {path} is no result of bench/region_loss.py in which all replicas came back: {error!r}. "
            "Run it again (make chaos), or name another."
        ) from error
    return Measured(num_exposed=len(exposed), num_failed=len(failed), restore_s=whole_s - loss_s)


def _changed(plain: Any, change: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(plain)
    for key, value in change.items():
        if key not in found:
            raise KeyError(f"there is no {key!r}; there are {', '.join(found)}")
        nested = isinstance(value, dict) and isinstance(found[key], dict)
        found[key] = _changed(found[key], cast(Mapping[str, Any], value)) if nested else value
    return found
