"""What a request must keep to count as good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sixfold.core.benchmark.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a request must keep to count as good; None does not matter."""

    ttft_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Reads ``ttft=0.5,itl=0.05,e2e=10`` (seconds).

        Raises:
            ValueError: It is none.
        """
        given: dict[str, float] = {}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            if name.strip() not in ("ttft", "itl", "e2e") or not equals:
                raise ValueError(f"{part!r} is no objective: give some of ttft=S,itl=S,e2e=S in seconds")
            given[f"{name.strip()}_s"] = float(value)
        return cls(**given)

    def kept(self, outcome: Outcome) -> bool:
        """Whether a request kept it; ``itl`` is compared with its mean time for an output token."""
        if outcome.error is not None:
            return False
        measured = (outcome.ttft_s, _token_time_s(outcome), outcome.e2e_s)
        limits = (self.ttft_s, self.itl_s, self.e2e_s)
        return all(
            limit is None or value is None or value <= limit for value, limit in zip(measured, limits, strict=True)
        )


def _token_time_s(outcome: Outcome) -> float | None:
    gaps = outcome.gaps_s
    return outcome.tpot_s if outcome.tpot_s is not None else sum(gaps) / len(gaps) if gaps else None
