"""95 % intervals of shares that were counted on n items, the items being the independent units."""

from __future__ import annotations

import math

_Z = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


def wilson(count: int, n: int) -> tuple[float, float]:
    """Interval of the share count / n of n ≥ 1 items: Wilson's score interval (E. B. Wilson, JASA 22:209, 1927)."""
    share, z2 = count / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (0.0 if count == 0 else middle - half), (1.0 if count == n else middle + half)


def paired_difference(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """Interval of (gained - lost) / n, the difference of two shares that were counted on the same n ≥ 1 items.

    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 17:2635 (1998), method 10: Wilson's intervals of the two shares, joined with the
    correlation φ of the pairs, which a continuity correction pulls towards 0. It never collapses to a point, so that
    no difference on n items is not taken for a proof that there is none.

    Args:
        both: items right in both models.
        gained: right in the second model alone.
        lost: right in the first model alone.
        neither: wrong in both.
    """
    n = both + gained + lost + neither
    second, first = both + gained, both + lost
    low2, high2 = wilson(second, n)
    low1, high1 = wilson(first, n)
    p2, p1 = second / n, first / n
    phi = _correlation(both, gained, lost, neither)
    below = (p2 - low2) ** 2 - 2 * phi * (p2 - low2) * (high1 - p1) + (high1 - p1) ** 2
    above = (high2 - p2) ** 2 - 2 * phi * (high2 - p2) * (p1 - low1) + (p1 - low1) ** 2
    difference = p2 - p1
    # Squares that cancel may leave a rounding error below zero; a difference of shares is never beyond ±1.
    return max(-1.0, difference - math.sqrt(max(0.0, below))), min(1.0, difference + math.sqrt(max(0.0, above)))


def _correlation(a: int, b: int, c: int, d: int) -> float:
    scale = (a + b) * (c + d) * (a + c) * (b + d)
    if scale == 0:
        return 0.0
    product, half = a * d - b * c, (a + b + c + d) / 2
    corrected = max(product - half, 0.0) if product > 0 else product
    return corrected / math.sqrt(scale)
