from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.coherence.intervals import paired_difference, wilson

COUNTS = st.tuples(*[st.integers(0, 400)] * 4).filter(any)


def test_wilson_gives_the_published_example() -> None:
    """81 of 263 in Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_the_paired_difference_gives_the_published_example() -> None:
    """(36, 12, 2, 0) in Newcombe, Statistics in Medicine 17:2635 (1998), method 10."""
    assert paired_difference(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_a_share(counts: tuple[int, int]) -> None:
    count, n = counts
    low, high = wilson(count, n)
    assert 0 <= low <= count / n <= high <= 1
    assert high - low > 0
    assert wilson(n - count, n) == pytest.approx((1 - high, 1 - low))


@given(COUNTS)
def test_the_paired_interval_holds_the_difference(counts: tuple[int, int, int, int]) -> None:
    _, gained, lost, _ = counts
    low, high = paired_difference(*counts)
    assert -1 <= low <= (gained - lost) / sum(counts) <= high <= 1
    assert high > low


@given(COUNTS)
def test_swapping_the_models_mirrors_the_interval(counts: tuple[int, int, int, int]) -> None:
    both, gained, lost, neither = counts
    low, high = paired_difference(both, gained, lost, neither)
    assert paired_difference(both, lost, gained, neither) == pytest.approx((-high, -low), abs=1e-12)


@given(COUNTS)
def test_ten_times_the_items_say_more(counts: tuple[int, int, int, int]) -> None:
    low, high = paired_difference(*counts)
    narrow_low, narrow_high = paired_difference(*(10 * count for count in counts))
    assert narrow_high - narrow_low < high - low


def test_it_covers_the_truth_about_95_times_in_100() -> None:
    """A loss of 3 points with 7 % flips on 250 items, drawn 2,000 times."""
    shares = [0.75, 0.02, 0.05, 0.18]
    drawn = np.random.default_rng(0).multinomial(250, shares, 2000).tolist()
    covered = [low <= -0.03 <= high for low, high in (paired_difference(*counts) for counts in drawn)]
    assert 0.93 < np.mean(covered) < 0.985
