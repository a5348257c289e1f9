from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.coherence.generation import compare_continuations, first_divergent_token, habits, loops, seq_rep


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [9, 2, 3], 0),
        ([1, 2, 3], [1, 2, 4], 2),
        ([1, 2, 3], [1, 2], 2),
        ([], [], None),
    ],
)
def test_first_divergent_token(a: list[int], b: list[int], expected: int | None) -> None:
    assert first_divergent_token(a, b) == expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], 0.0),
        ([1, 1, 1], 0.0),
        ([1, 2, 3, 4, 5], 0.0),
        ([7] * 13, 0.9),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 - 4 / 5),
    ],
)
def test_seq_rep_4_by_hand(ids: list[int], expected: float) -> None:
    assert seq_rep(ids) == pytest.approx(expected)


def test_a_cycle_loops_only_when_it_is_long_enough() -> None:
    start = list(range(100, 120))
    assert loops([*start, *[5] * 12])
    assert not loops([*start, *[5] * 11]), "three dots are no loop"
    assert loops([*start, *list(range(16)) * 3])
    assert not loops([*start, *(list(range(16)) * 3)[1:]])
    assert not loops([*start, *list(range(17)) * 4])


def test_a_loop_that_ends_is_no_loop() -> None:
    assert loops([5] * 30)
    assert not loops([*[5] * 30, 0])


@given(st.lists(st.integers(0, 50)), st.integers(1, 16), st.integers(0, 15), st.data())
def test_every_cycle_is_found_wherever_it_is_cut(start: list[int], period: int, cut: int, data: st.DataObject) -> None:
    cycle = data.draw(st.lists(st.integers(0, 5), min_size=period, max_size=period))
    assert loops([*start, *cycle * 13, *cycle[: cut % period]])


def test_habits_are_means_over_continuations() -> None:
    found = habits([[7] * 13, [1, 2, 3, 4, 0]], frozenset({0}))
    assert found.seq_rep_4 == pytest.approx(0.45)
    assert found.loop_rate == found.eot_rate == 0.5


def test_comparison_counts_identical_ones_as_latest() -> None:
    reference = [[1, 2, 0], [1, 2, 0], [3, 4, 5]]
    found = compare_continuations(reference, [[1, 2, 0], [1, 9, 9], [9] * 3], frozenset({0}), 3)
    assert found.first_divergent_token == (None, 1, 0)
    assert found.first_divergent_median == 1
    assert found.identical_share == pytest.approx(1 / 3)
    assert found.eot_rate_rise == pytest.approx(-1 / 3)
    mostly_same = compare_continuations(reference, [*reference[:2], [9] * 3], frozenset({0}), 3)
    assert mostly_same.first_divergent_median is None


def test_a_looping_engine_shows_a_rise() -> None:
    found = compare_continuations([list(range(40))] * 2, [[1, 2] * 20, list(range(40))], frozenset(), 40)
    assert found.loop_rate_rise == 0.5
    assert found.seq_rep_4_rise == pytest.approx((1 - 2 / 37) / 2)
