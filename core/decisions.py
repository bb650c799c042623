"""What the running system changed about itself, and why: one log for everything that re-tunes from traffic.

``GET /decisions`` of servers, gateways, agents and hubs answers a `DecisionList`, oldest first::

    {"object": "list", "data": [{
      "number": 7, "time": 1764370800.25, "source": "chat/0", "what": "step_budget_units", "from": 1024, "to": 768,
      "reason": "p95 0.31 s is over the target and steps are not full", "objective": "p95_ttft_s <= 0.2; 16..65536 units"
    }]}
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping

import msgspec

Setting = float | str
"""What was tuned: a number, or the name of one of a few ways."""

_KEPT = 256


class Decision(msgspec.Struct, frozen=True, kw_only=True, rename={"time_s": "time", "before": "from", "after": "to"}):
    """One change of one setting.

    Attributes:
        number: Rises within one log; with ``source`` it names the decision.
        time_s: Unix time.
        source: Who decided, or about what: ``MODEL/REPLICA`` of a server, ``MODEL@SITE`` of gateways, agents and hubs. Filled in
            by whoever shows it where the log leaves it out.
        what: The setting, such as ``step_budget_units``, ``draft_tokens``, ``host_cache``, ``split_share``, ``site``,
            ``replicas``. Few different words: it labels a metric.
        before: Its value until then.
        after: Its value from then on.
        reason: One sentence with the measurements that it rests on. Never holds a text of a client.
        objective: What it serves and the bounds that it keeps, as declared.
    """

    number: int
    time_s: float
    source: str = ""
    what: str
    before: Setting
    after: Setting
    reason: str
    objective: str = ""


class DecisionList(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``GET /decisions``."""

    object: str = "list"
    data: tuple[Decision, ...]


class DecisionLog:
    """The last decisions of one owner. Written by one thread; `recent` and `counts` may be read by any.

    Args:
        clock: Unix time.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ring: deque[Decision] = deque(maxlen=_KEPT)
        self._shown: dict[tuple[str, str], float] = {}
        self._num = 0
        self._counts: Counter[str] = Counter()
        self.recent: tuple[Decision, ...] = ()

    @property
    def counts(self) -> Mapping[str, int]:
        """Decisions so far, by what was changed."""
        return dict(self._counts)

    def changed(
        self, what: str, before: Setting, after: Setting, reason: str, *, objective: str, source: str = ""
    ) -> None:
        """Records a change."""
        self._num += 1
        self._keep(
            Decision(
                number=self._num, time_s=self._clock(), source=source, what=what,
                before=before, after=after, reason=reason, objective=objective,
            )
        )  # fmt: skip

    def moved(
        self, what: str, value: float, reason: Callable[[], str], *, objective: str, least: float, source: str = ""
    ) -> None:
        """Records where a setting has got to that moves all the time: once it is far enough from what was recorded last.

        Args:
            what: The setting.
            value: Its present value; the first one is where it starts, and no decision.
            reason: Asked only where there is something to record.
            objective: As of `Decision`.
            least: Smallest change that is worth a line, as a share of the larger of both values.
            source: As of `Decision`; each has a course of its own.
        """
        before = self._shown.setdefault((what, source), value)
        if value != before and abs(value - before) >= least * max(abs(value), abs(before)):
            self._shown[what, source] = value
            self.changed(what, _rounded(before), _rounded(value), reason(), objective=objective, source=source)

    def take(self, decisions: Iterable[Decision]) -> None:
        """Adds what another log recorded, such as a worker's in the serving process."""
        for decision in decisions:
            self._num = max(self._num, decision.number)
            self._keep(decision)

    def since(self, number: int) -> tuple[Decision, ...]:
        """Those that came after a number, as far as they are kept."""
        recent = self.recent
        return recent if not recent or recent[0].number > number else tuple(d for d in recent if d.number > number)

    def _keep(self, decision: Decision) -> None:
        self._counts[decision.what] += 1
        self._ring.append(decision)
        self.recent = tuple(self._ring)


def merged(logs: Mapping[str, DecisionLog]) -> DecisionList:
    """All decisions of several owners by time; those without a source get their owner's name."""
    found = [
        decision if decision.source else msgspec.structs.replace(decision, source=name)
        for name, log in logs.items()
        for decision in log.recent
    ]
    return DecisionList(data=tuple(sorted(found, key=lambda decision: (decision.time_s, decision.number))))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
