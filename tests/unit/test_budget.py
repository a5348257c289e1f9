"""The choice under a limit: against brute force on small instances, and how far from the optimum on large ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.quantize.budget import Choice, InfeasibleError, least_cost, least_damage, tabulate

Groups = list[list[Choice]]
choices = st.builds(Choice, st.floats(0, 10, allow_subnormal=False), st.integers(0, 60))
problems = st.lists(st.lists(choices, min_size=1, max_size=4), min_size=1, max_size=5)


def every(groups: Groups) -> list[tuple[float, int]]:
    """Damage and cost of every way to choose."""
    return [(math.fsum(c.damage for c in way), sum(c.cost for c in way)) for way in itertools.product(*groups)]


@pytest.mark.parametrize(
    "groups",
    [
        [], [[]], [[Choice(0, 1)], []], [[Choice(-1e-9, 1)]], [[Choice(math.nan, 1)]], [[Choice(math.inf, 1)]],
        [[Choice(1, -1)]],
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_problem_is_refused(groups: Groups) -> None:
    with pytest.raises(ValueError, match=r"choice|groups"):
        tabulate(groups)


def test_a_limit_that_nothing_meets_names_the_nearest() -> None:
    table = tabulate([[Choice(3, 10), Choice(1, 20)], [Choice(2, 5)]])
    with pytest.raises(InfeasibleError) as cost:
        least_damage(table, 14)
    assert cost.value.nearest == 15
    for limit in (2.9, math.nan):
        with pytest.raises(InfeasibleError) as damage:
            least_cost(table, limit)
        assert damage.value.nearest == 3


@given(problems, st.integers(0, 320))
def test_least_damage_is_that_of_brute_force(groups: Groups, limit: int) -> None:
    feasible = [damage for damage, cost in every(groups) if cost <= limit]
    table = tabulate(groups)
    if not feasible:
        with pytest.raises(InfeasibleError):
            least_damage(table, limit)
        return
    found = least_damage(table, limit)
    assert found.damage == pytest.approx(min(feasible), abs=1e-9)
    assert found.cost <= limit
    assert found.gap == 0
    picked = [group[index] for group, index in zip(groups, found.picks, strict=True)]
    assert found.cost == sum(choice.cost for choice in picked)
    assert found.damage == pytest.approx(sum(choice.damage for choice in picked))


@given(problems, st.floats(0, 60))
def test_least_cost_is_that_of_brute_force(groups: Groups, limit: float) -> None:
    feasible = [cost for damage, cost in every(groups) if damage <= limit * (1 + 1e-9)]
    clear = [cost for damage, cost in every(groups) if damage <= limit * (1 - 1e-6)]
    table = tabulate(groups)
    if not feasible:
        if not any(damage <= limit * (1 + 1e-6) for damage, _ in every(groups)):
            with pytest.raises(InfeasibleError):
                least_cost(table, limit)
        return
    if clear:
        assert least_cost(table, limit).cost <= min(clear)
        assert least_cost(table, limit).damage <= limit * (1 + 1e-6)


@given(problems)
def test_more_is_never_worse(groups: Groups) -> None:
    table = tabulate(groups)
    found = [least_damage(table, limit).damage for limit in range(table.base, table.base + 250, 7)]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(found))


@given(problems, st.integers(0, 320), st.integers(6, 12))
def test_too_few_cells_keep_the_limit_and_the_bound(groups: Groups, limit: int, cells: int) -> None:
    feasible = [damage for damage, cost in every(groups) if cost <= limit]
    if not feasible:
        return
    found = least_damage(tabulate(groups, cells), limit)
    assert found.cost <= limit
    assert found.bound - 1e-6 <= min(feasible) <= found.damage + 1e-9
    if found.gap == 0:
        assert found.damage == pytest.approx(min(feasible), abs=1e-6)


@given(problems, st.floats(0.01, 60), st.integers(6, 12))
def test_too_few_cells_keep_the_limit_on_damage(groups: Groups, limit: float, cells: int) -> None:
    feasible = [cost for damage, cost in every(groups) if damage <= limit * (1 - 1e-6)]
    if not feasible:
        return
    found = least_cost(tabulate(groups, cells), limit)
    assert found.damage <= limit * (1 + 1e-6)
    assert found.bound <= min(feasible) + 1e-6


@pytest.mark.parametrize("seed", [0, 1])
def test_a_large_problem_is_solved_to_a_thousandth(seed: int) -> None:
    """Damages fall about fourfold a bit, as those of number formats do; costs have no common divisor."""
    rng = np.random.default_rng(seed)
    sizes, weights = rng.integers(10**5, 10**7, 200), rng.lognormal(0, 2, 200)
    groups = [
        [
            Choice(float(w * 4.0**-bits * rng.uniform(0.8, 1.2)), int(size * bits / 8) + 7)
            for bits in (4.5, 5.5, 6.6, 8.5)
        ]
        for size, w in zip(sizes, weights, strict=True)
    ]
    table = tabulate(groups)
    limit = int(table.base * 1.2)
    found = least_damage(table, limit)
    assert found.cost <= limit
    assert 0 <= found.gap < 1e-3
    back = least_cost(table, found.damage)
    assert back.damage <= found.damage * (1 + 1e-9)
    assert 0 <= back.gap < 1e-3
