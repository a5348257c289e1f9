"""One choice for each group, the least damage under a limit on cost: the multiple-choice knapsack problem.

Solved by dynamic programming over cost. Costs are counted in the largest unit that divides all differences: then the
solution is exact. Where that needs more than :data:`CELLS` cells, costs are rounded to a coarser unit, the solution's
true cost is what keeps the limit, and the distance to the optimum is bounded by Lagrangian relaxation, see
:attr:`Solution.bound`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
CELLS = 1 << 16
_MOST_CHOICES = 120
_BISECTIONS = 60
_SLACK = 1e-9
"""Relative: sums of damages differ in their last digits with the order of summation."""


@dataclass(frozen=True)
class Choice:
    """One way to do one group."""

    damage: float
    """Not negative."""
    cost: int
    """Not negative."""


@dataclass(frozen=True)
class Solution:
    """One choice for each group."""

    picks: tuple[int, ...]
    """Index of each group's choice."""
    damage: float
    cost: int
    bound: float
    """What is minimised (damage, or cost under a limit on damage) can be no smaller than this."""
    gap: float
    """How much larger it is than `bound`, relative to it; 0: solved exactly."""


class InfeasibleError(Exception):
    """No choice keeps to the limit; `nearest` is the least that any reaches (cost, or damage)."""

    def __init__(self, nearest: float) -> None:
        super().__init__(f"the least is {nearest}")
        self.nearest = nearest


@dataclass(frozen=True)
class Table:
    """All solutions of one problem."""

    damages: F64
    """(groups, choices), padded with infinity."""
    costs: F64
    """(groups, choices) above the group's cheapest, padded with infinity."""
    base: int
    """Cost of the cheapest choices together."""
    unit: int
    """Cost of one cell."""
    exact: bool
    best: F64
    """(cells,): least damage of at most that many units above `base`."""
    picks: NDArray[np.int8]
    """(groups, cells): the choice of each group on the way to `best`."""
    steps: NDArray[np.int64]
    """(groups, choices): costs in units, rounded; -1 where there is no choice."""


def tabulate(groups: Sequence[Sequence[Choice]], cells: int = CELLS) -> Table:
    """Solve for every limit at once. Time and memory go with groups × choices × cells.

    Args:
        groups: the choices of each group, at least one each.
        cells: at most this many different costs are told apart.

    Raises:
        ValueError: a group has no or too many choices, a damage is negative or not finite, a cost negative.
    """
    _check(groups)
    most = max(map(len, groups))
    damages, costs = np.full((2, len(groups), most), np.inf)
    for row, choices in enumerate(groups):
        cheapest = min(choice.cost for choice in choices)
        damages[row, : len(choices)] = [choice.damage for choice in choices]
        costs[row, : len(choices)] = [choice.cost - cheapest for choice in choices]
    unit, exact = _unit(costs, cells)
    there = np.isfinite(costs)
    steps = np.where(there, np.rint(np.where(there, costs, 0) / unit), -1).astype(np.int64)
    best, picks = _fill(damages, steps)
    base = sum(min(choice.cost for choice in choices) for choices in groups)
    return Table(damages, costs, base, unit, exact, best, picks, steps)


def least_damage(table: Table, limit: int) -> Solution:
    """The choices with the least damage whose cost is at most `limit`.

    Raises:
        InfeasibleError: even the cheapest choices cost more.
    """
    if limit < table.base:
        raise InfeasibleError(table.base)
    picks = _within(table, limit)
    damage, cost = _totals(table, picks)
    bound = damage if table.exact else _relaxed(table.damages, table.costs, limit - table.base)
    return _solution(picks, damage, cost, damage, bound)


def _within(table: Table, limit: int) -> tuple[int, ...]:
    """The choices of the last cell whose true cost keeps the limit: rounding is off by half a unit a group at most."""
    spread = 0 if table.exact else len(table.steps) // 2 + 1
    cell = (limit - table.base) // table.unit
    for place in range(min(cell + spread, len(table.best) - 1), -1, -1):
        picks = _walk(table, place)
        if _totals(table, picks)[1] <= limit:
            return picks
    cheapest = table.costs == 0
    return tuple(map(int, np.where(cheapest, table.damages, np.inf).argmin(axis=1)))


def least_cost(table: Table, limit: float) -> Solution:
    """The choices with the least cost whose damage is at most `limit`.

    Raises:
        InfeasibleError: even the choices with the least damage have more.
    """
    within = limit * (1 + _SLACK)
    if not within >= table.best[-1]:
        raise InfeasibleError(float(table.best[-1]))
    cell = int(np.argmax(table.best <= within))
    picks = _walk(table, cell)
    damage, cost = _totals(table, picks)
    bound = float(cost) if table.exact else table.base + _relaxed(table.costs, table.damages, limit)
    return _solution(picks, damage, cost, float(cost), bound)


def _solution(picks: tuple[int, ...], damage: float, cost: int, reached: float, bound: float) -> Solution:
    bound = min(max(bound, 0.0), reached)
    gap = 0.0 if reached <= bound * (1 + _SLACK) else (reached - bound) / bound if bound > 0 else math.inf
    return Solution(picks, damage, cost, bound, gap)


def _check(groups: Sequence[Sequence[Choice]]) -> None:
    for choices in groups:
        if not 0 < len(choices) <= _MOST_CHOICES:
            raise ValueError(f"a group has {len(choices)} choices")
        for choice in choices:
            if not (math.isfinite(choice.damage) and choice.damage >= 0 and choice.cost >= 0):
                raise ValueError(f"{choice} is not a choice")
    if not groups:
        raise ValueError("there are no groups")


def _unit(costs: F64, cells: int) -> tuple[int, bool]:
    """Cost of a cell, and whether all costs are whole multiples of it."""
    finite = np.where(np.isfinite(costs), costs, 0).astype(np.int64)
    divisor = max(1, math.gcd(*map(int, np.unique(finite))))
    widest = int(finite.max(axis=1).sum())
    return (divisor, True) if widest // divisor < cells else (-(-widest // cells), False)


def _fill(damages: F64, steps: NDArray[np.int64]) -> tuple[F64, NDArray[np.int8]]:
    width = int(steps.max(axis=1).sum()) + 1
    best, picks = np.zeros(width), np.zeros((len(steps), width), np.int8)
    for row, (own, taken) in enumerate(zip(damages, steps, strict=True)):
        found = np.full(width, np.inf)
        for index in np.flatnonzero(taken >= 0):
            step = int(taken[index])
            reached = best[: width - step] + own[index]
            better = reached < found[step:]
            found[step:][better] = reached[better]
            picks[row, step:][better] = index
        best = found
    return best, picks


def _walk(table: Table, cell: int) -> tuple[int, ...]:
    """The choices on the way to a cell, last group first."""
    found = []
    for row in range(len(table.picks) - 1, -1, -1):
        index = int(table.picks[row, cell])
        found.append(index)
        cell -= int(table.steps[row, index])
    return tuple(reversed(found))


def _totals(table: Table, picks: Sequence[int]) -> tuple[float, int]:
    rows = np.arange(len(picks))
    places = np.asarray(picks)
    return float(table.damages[rows, places].sum()), table.base + int(table.costs[rows, places].sum())


def _relaxed(objective: F64, weights: F64, limit: float) -> float:
    """Lower bound of Σ objective under Σ weights ≤ limit: the Lagrangian Σ min(o + λ w) - λ limit, largest over λ.

    The Lagrangian is concave in λ; its slope, the weight of the minimal choices minus the limit, is halved in on.
    """
    padded = np.where(np.isfinite(weights), weights, 0.0)
    rows = np.arange(len(objective))

    def at(price: float) -> tuple[float, float]:
        picks = (objective + price * padded).argmin(axis=1)
        weight = float(padded[rows, picks].sum())
        return float(objective[rows, picks].sum()) + price * (weight - limit), weight - limit

    low, high = 0.0, 1e-30
    best = at(low)[0]
    while at(high)[1] > 0 and high < 1e30:
        low, high = high, 4 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        value, slope = at(middle)
        best = max(best, value)
        low, high = (middle, high) if slope > 0 else (low, middle)
    return best
