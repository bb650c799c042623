"""Places a group of models by a mixed integer program; everything else stays as it is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from sixfold.scaling.hub.model import ModelDemand
from sixfold.scaling.hub.problem import EPSILON, Flow, Placement, Pool, Problem, Spot

_GAP = 1e-4


def solve_group(problem: Problem, placement: Placement, group: Sequence[str], time_limit_s: float) -> Placement | None:
    """The best placement that was found of the group's models beside the others of ``placement``.

    Args:
        problem: What may be done.
        placement: A feasible placement of all models; its group part is where the solver starts.
        group: Models to place anew.
        time_limit_s: When the solver stops with what it has.

    Returns:
        The whole placement, or None if the solver found nothing that is feasible in whole replicas.
    """
    program = _Program(problem, placement, group)
    values = program.solve(time_limit_s)
    if values is None:
        return None
    found = placement.replaced(program.read(values), group)
    return None if problem.violations(found) else found


class _Program:
    """Columns and rows of one program. The rows are built once, column by column index, and handed over as arrays."""

    def __init__(self, problem: Problem, placement: Placement, group: Sequence[str]) -> None:
        self._problem = problem
        self._start = placement
        self._cost: list[float] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._integer: list[bool] = []
        self._rows: list[tuple[float, float, list[tuple[int, float]]]] = []
        self._replica: dict[Spot, int] = {}
        self._flow: dict[Flow, int] = {}
        self._stop: list[int] = []
        self._warm: dict[int, float] = {}
        names = frozenset(group)
        others = {spot: count for spot, count in placement.replicas.items() if spot.model not in names}
        used = problem.used(others)
        self._left = {pool: count - used.get(pool, 0) for pool, count in problem.capacity.items()}
        stops_elsewhere = problem.stops(placement.replicas, set(problem.models) - names)
        for name in group:
            self._add_model(problem.models[name])
        self._add_capacity()
        if self._stop:
            budget = problem.weights.max_stops - stops_elsewhere
            self._row(-math.inf, max(0, budget), ((column, 1.0) for column in self._stop))

    def _column(self, cost: float, upper: float = math.inf, *, lower: float = 0.0, integer: bool = False) -> int:
        self._cost.append(cost)
        self._lower.append(lower)
        self._upper.append(upper)
        self._integer.append(integer)
        return len(self._cost) - 1

    def _row(self, lower: float, upper: float, terms: Iterable[tuple[int, float]]) -> None:
        self._rows.append((lower, upper, list(terms)))

    def _add_model(self, demand: ModelDemand) -> None:
        problem, limits, weights = self._problem, demand.constraints, self._problem.weights
        spots = problem.spots[demand.model]
        for spot in spots:
            now = problem.carried.get(spot, 0)
            most = min(limits.max_replicas, self._left[Pool(spot.site_id, spot.accelerator)] // problem.units(spot))
            fixed = spot.site_id in problem.frozen
            column = self._column(
                problem.hourly_price(spot),
                now if fixed else most,
                lower=now if fixed else 0,
                integer=True,
            )
            self._replica[spot] = column
            self._warm[column] = self._start.replicas.get(spot, 0)
            if now and not fixed:
                stop = self._column(weights.move, now)
                self._stop.append(stop)
                self._row(now, math.inf, ((column, 1.0), (stop, 1.0)))
        replicas = [(self._replica[spot], 1.0) for spot in spots]
        self._row(-math.inf, limits.max_replicas, replicas)
        if limits.min_replicas:
            short = self._column(weights.unserved * limits.priority, limits.min_replicas)
            self._row(limits.min_replicas, math.inf, (*replicas, (short, 1.0)))
        self._add_flows(demand)
        self._add_survival(demand)
        self._add_spread(demand)

    def _add_flows(self, demand: ModelDemand) -> None:
        problem, weights = self._problem, self._problem.weights
        at_site: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for spot in problem.spots[demand.model]:
            at_site[spot.site_id].append((self._replica[spot], -1.0))
        for load in demand.loads:
            if load.num_replicas <= EPSILON:
                continue
            served: list[tuple[int, float]] = []
            for site_id, terms in at_site.items():
                flow = Flow(demand.model, load.origin, site_id)
                cost = weights.latency_per_s * problem.latency_s(load.origin, site_id)
                self._flow[flow] = column = self._column(cost, load.num_replicas)
                self._warm[column] = self._start.flows.get(flow, 0.0)
                served.append((column, 1.0))
                terms.append((column, 1.0))
            unserved = self._column(weights.unserved * demand.constraints.priority, load.num_replicas)
            self._row(load.num_replicas, load.num_replicas, (*served, (unserved, 1.0)))
        for terms in at_site.values():
            self._row(-math.inf, 0.0, terms)

    def _add_survival(self, demand: ModelDemand) -> None:
        """Soft: with scarce capacity the hard form has no solution, and then there would be no plan at all."""
        needed = demand.constraints.survive_share * demand.num_replicas
        if needed <= EPSILON:
            return
        problem = self._problem
        for domain in sorted({site.domain for site in problem.sites.values()}):
            short = self._column(problem.weights.survival, needed)
            outside = (
                (self._replica[spot], 1.0)
                for spot in problem.spots[demand.model]
                if problem.sites[spot.site_id].domain != domain
            )
            self._row(needed, math.inf, (*outside, (short, 1.0)))

    def _add_spread(self, demand: ModelDemand) -> None:
        if demand.constraints.min_sites <= 0:
            return
        at_site: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for spot in self._problem.spots[demand.model]:
            at_site[spot.site_id].append((self._replica[spot], 1.0))
        opened: list[tuple[int, float]] = []
        for terms in at_site.values():
            column = self._column(0.0, 1, integer=True)
            opened.append((column, 1.0))
            self._row(0.0, math.inf, (*terms, (column, -1.0)))
        short = self._column(self._problem.weights.spread, demand.constraints.min_sites)
        self._row(demand.constraints.min_sites, math.inf, (*opened, (short, 1.0)))

    def _add_capacity(self) -> None:
        takers: dict[Pool, list[tuple[int, float]]] = defaultdict(list)
        for spot, column in self._replica.items():
            takers[Pool(spot.site_id, spot.accelerator)].append((column, float(self._problem.units(spot))))
        for pool, terms in takers.items():
            self._row(-math.inf, self._left[pool], terms)

    def solve(self, time_limit_s: float) -> list[float] | None:
        """The values of the columns; None if the solver found no feasible ones in time."""
        import highspy  # an extra, and 0.2 s to import: only a hub that plans needs it

        solver = highspy.Highs()  # type: ignore[no-untyped-call]  # typed in part
        solver.silent()
        for option, value in (("time_limit", time_limit_s), ("mip_rel_gap", _GAP), ("threads", 1)):
            solver.setOptionValue(option, value)
        lengths = [len(terms) for _, _, terms in self._rows]
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = len(self._cost), len(self._rows)
        program.col_cost_ = np.array(self._cost)
        program.col_lower_, program.col_upper_ = np.array(self._lower, float), np.array(self._upper, float)
        program.row_lower_ = np.array([lower for lower, _, _ in self._rows], float)
        program.row_upper_ = np.array([upper for _, upper, _ in self._rows], float)
        kinds = highspy.HighsVarType
        program.integrality_ = [kinds.kInteger if whole else kinds.kContinuous for whole in self._integer]
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_ = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        program.a_matrix_.index_ = np.array([column for _, _, terms in self._rows for column, _ in terms], np.int32)
        program.a_matrix_.value_ = np.array([factor for _, _, terms in self._rows for _, factor in terms], float)
        solver.passModel(program)
        columns = np.array(list(self._warm), np.int32)
        solver.setSolution(len(columns), columns, np.array(list(self._warm.values()), float))
        solver.run()
        if solver.getInfo().primal_solution_status != highspy.kSolutionStatusFeasible:
            return None
        return list(solver.getSolution().col_value)

    def read(self, values: Sequence[float]) -> Placement:
        """The group's placement in whole replicas."""
        replicas = {spot: round(values[column]) for spot, column in self._replica.items()}
        flows = {flow: values[column] for flow, column in self._flow.items() if values[column] > EPSILON}
        return Placement({spot: count for spot, count in replicas.items() if count}, flows)
