"""What the running system changed about itself, and why: one log for everything that re-tunes from traffic.

``GET /decisions`` of servers, gateways, agents and hubs answers a `DecisionList`, oldest first::

    {"object": "list", "data": [{
      "number": 7, "time": 1764370800.25, "source": "chat/0", "what": "step_budget_units", "from": 1024, "to": 768,
      "reason": "p95 0.31 s is over the target and steps are not full", "objective": "p95_ttft_s <= 0.2; 16..65536 units"
    }]}
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import msgspec

Setting = float | str
"""What was tuned: a number, or the name of one of a few ways."""

_KEPT = 256
_PACE_S = 10.0
"""Between two records of a setting that moves all the time: the ring shall hold an hour of several of them."""


class Decision(msgspec.Struct, frozen=True, kw_only=True, rename={"time_s": "time", "before": "from", "after": "to"}):
    """One change of one setting.

    Attributes:
        number: Rises within one log; with ``source`` it names the decision.
        time_s: Unix time.
        source: Who decided, or about what: ``MODEL/REPLICA`` of a server, ``MODEL@SITE`` of gateways, agents and hubs. Filled in
            by whoever shows it where the log leaves it out.
        what: The setting, such as ``step_budget_units``, ``draft_tokens``, ``host_cache``, ``split_share``, ``site``,
            ``replicas``. Few different words.
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
    """The last decisions of one owner. Written by one thread; what it shows may be read by any.

    Args:
        clock: Unix time.

    Attributes:
        num: Decisions so far.
        recent: The last of them, oldest first.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ring: deque[Decision] = deque(maxlen=_KEPT)
        self._shown: dict[tuple[str, str], tuple[float, float]] = {}
        self.num = 0
        self.recent: tuple[Decision, ...] = ()

    def changed(
        self, what: str, before: Setting, after: Setting, reason: str, *, objective: str, source: str = ""
    ) -> None:
        """Records a change."""
        self.num += 1
        self._keep(
            Decision(
                number=self.num, time_s=self._clock(), source=source, what=what,
                before=before, after=after, reason=reason, objective=objective,
            )
        )  # fmt: skip

    def moved(
        self, what: str, value: float, reason: Callable[[], str], *, objective: str, least: float, source: str = ""
    ) -> None:
        """Records where a setting has got to that moves all the time: once it is far enough from what was recorded last, and not
        more often than every ten seconds.

        Args:
            what: The setting.
            value: Its present value; the first one is where it starts, and no decision.
            reason: Asked only where there is something to record.
            objective: As of `Decision`.
            least: Smallest change that is worth a line, as a share of the larger of both values.
            source: As of `Decision`; each has a course of its own.
        """
        now_s = self._clock()
        before, shown_s = self._shown.setdefault((what, source), (value, now_s))
        far = value != before and abs(value - before) >= least * max(abs(value), abs(before))
        if far and abs(now_s - shown_s) >= _PACE_S:  # a clock that was set back delays nothing for long
            self._shown[what, source] = value, now_s
            self.changed(what, _rounded(before), _rounded(value), reason(), objective=objective, source=source)

    def take(self, decisions: Iterable[Decision]) -> None:
        """Adds what another log recorded, such as a worker's in the serving process."""
        for decision in decisions:
            self.num = max(self.num, decision.number)
            self._keep(decision)

    def _keep(self, decision: Decision) -> None:
        self._ring.append(decision)
        self.recent = tuple(self._ring)


def merged(found: Mapping[str, Iterable[Decision]]) -> DecisionList:
    """Decisions of several owners by time; those without a source get their owner's name."""
    named = [
        decision if decision.source else msgspec.structs.replace(decision, source=name)
        for name, own in found.items()
        for decision in own
    ]
    return DecisionList(data=tuple(sorted(named, key=lambda decision: (decision.time_s, decision.number))))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
