"""Turns a snapshot into a plan: the greedy placement, improved by the solver for as long as there is time."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence

from sixfold.core.errors import UsageError
from sixfold.scaling.hub.explanation import Explanation
from sixfold.scaling.hub.greedy import place_greedily
from sixfold.scaling.hub.model import Plan, Snapshot
from sixfold.scaling.hub.plan_parts import assignments, loads, locks, routes
from sixfold.scaling.hub.problem import Placement, Problem
from sixfold.scaling.hub.score import score

_log = logging.getLogger(__name__)

_MAX_COLUMNS = 1500
"""Spots and flows of one program. 34,000 in one did not close an 84 % gap in 10 s; programs of this size take a second."""

_MIN_SOLVE_S = 0.05
_WORTH = 1e-6

MILP = "milp"
GREEDY = "greedy"


def optimize(
    snapshot: Snapshot,
    *,
    deadline_s: float,
    solver: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """The best plan that is found in time; always feasible, and never worse than the greedy one.

    Epoch and author are left empty: the leader fills them in.

    Args:
        snapshot: All that it depends on, together with the time that the solver gets.
        deadline_s: Seconds for the solver; the greedy placement comes on top.
        solver: False leaves it with the greedy placement, which is the same in every run.
        clock: Only for the deadline.
    """
    problem = Problem(snapshot)
    placement, used = place_greedily(problem), GREEDY
    if solver and problem.models and problem.sites:
        placement, used = improve(problem, placement, clock() + deadline_s, clock)
    return _plan(problem, placement, used)


def improve(
    problem: Problem, placement: Placement, until_s: float, clock: Callable[[], float]
) -> tuple[Placement, str]:
    """Places one group of models after the other anew, beside all others, and keeps what is better.

    Groups are mixed anew in every round, so that any two models meet; it ends when a round brought nothing, or in time.
    With all models in one group the solver's answer is the optimum.
    """
    from sixfold.scaling.hub.milp import solve_group

    used, shuffle = GREEDY, random.Random(len(problem.models))
    while True:
        groups, gained = _groups(problem, shuffle), False
        for place, group in enumerate(groups):
            share_s = (until_s - clock()) / (len(groups) - place)
            if until_s - clock() < _MIN_SOLVE_S:
                return placement, used
            try:
                found = solve_group(problem, placement, group, max(share_s, _MIN_SOLVE_S))
            except ImportError:
                raise UsageError("The hub's solver is not installed. Run: pip install 'sixfold[hub]'") from None
            if found is None:
                _log.debug("the solver found nothing for %d models", len(group))
                continue
            used = MILP
            if score(problem, found, group).total < score(problem, placement, group).total - _WORTH:
                placement, gained = found, True
        if len(groups) == 1 or not gained:
            return placement, used


def _groups(problem: Problem, shuffle: random.Random) -> Sequence[list[str]]:
    """Models in groups whose programs stay small."""
    names = list(problem.models)
    shuffle.shuffle(names)
    return list(_cut(problem, names))


def _cut(problem: Problem, names: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    columns = 0
    for name in names:
        size = len(problem.spots[name]) * (2 + len(problem.models[name].loads))
        if group and columns + size > _MAX_COLUMNS:
            yield group
            group, columns = [], 0
        group.append(name)
        columns += size
    if group:
        yield group


def _plan(problem: Problem, placement: Placement, used: str) -> Plan:
    explanation = Explanation(problem, placement)
    return Plan(
        site_ids=tuple(sorted(problem.sites)),
        assignments=assignments(problem, placement, explanation.reason),
        routes=routes(problem, placement),
        locks=locks(problem),
        loads=loads(problem),
        notes=explanation.notes(),
        solver=used,
        objective=round(score(problem, placement).total, 6),
    )
