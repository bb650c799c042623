"""The doors of a gateway's models: who may go in, and when one who went in is late; made with a model's first request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from sixfold.scaling.gateway.admission import Admission
from sixfold.scaling.gateway.budgets import HedgeClock
from sixfold.scaling.gateway.fleet import Fleet
from sixfold.scaling.gateway.geography import Geography
from sixfold.scaling.gateway.settings import AdmissionSettings, HedgeSettings


class Doors:
    """One for each model, by the name that clients use; "" is for requests that name none. Used in one event loop.

    Args:
        admission: How many go in and wait.
        hedging: Who is late.
        fleet: Says how much room there is.
        geography: Says why there is none.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        admission: AdmissionSettings,
        hedging: HedgeSettings,
        *,
        fleet: Fleet,
        geography: Geography,
        clock: Callable[[], float],
    ) -> None:
        self._limits = admission
        self._hedging = hedging
        self._fleet = fleet
        self._geography = geography
        self._clock = clock
        self._admissions: dict[str, Admission] = {}
        self._hedges: dict[str, HedgeClock] = {}

    def admission_of(self, model: str) -> Admission:
        """A model's door."""
        found = self._admissions.get(model)
        if found is None:
            limits, fleet = self._limits, self._fleet
            found = self._admissions[model] = Admission(
                capacity=lambda: len(fleet.available(model or None)) * limits.max_running_per_replica,
                max_waiting=limits.max_waiting,
                hold_s=limits.hold_s,
                no_replica=lambda: self._geography.no_replica(fleet.names_of(model or None)),
                clock=self._clock,
            )
        return found

    def hedge_of(self, model: str) -> HedgeClock:
        """When requests of a model are late."""
        return self._hedges.setdefault(model, HedgeClock(self._hedging))

    def pump(self) -> None:
        """There may be more or less room than before."""
        for admission in self._admissions.values():
            admission.pump()

    def num_waiting(self, models: Iterable[str]) -> int:
        """Requests of models that wait."""
        return sum(self._admissions[model].num_waiting for model in models if model in self._admissions)

    @property
    def waiting(self) -> Mapping[str, int]:
        """Requests that wait, by model."""
        return {model: admission.num_waiting for model, admission in self._admissions.items()}
