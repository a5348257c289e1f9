"""Medians and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
ENOUGH = 6
"""Values from which a bootstrap interval is given; with fewer, the smallest and the largest value stand for it."""


@dataclass(frozen=True)
class Interval:
    """A median and how sure it is."""

    median: float
    low: float
    high: float
    method: str
    """"bootstrap 95 %" or "min to max"."""

    @property
    def width(self) -> float:
        """(high - low) / |median|; infinite around a median of zero."""
        if self.high == self.low:
            return 0.0
        return (self.high - self.low) / abs(self.median) if self.median else math.inf


def median_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Median with its percentile-bootstrap interval (95 %, resampled values), or with min and max of under six values.

    Raises:
        ValueError: `values` is empty or holds NaN or infinity.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not np.isfinite(array).all():
        raise ValueError("a median needs at least one value, all of them finite")
    median = float(np.median(array))
    if array.size < ENOUGH:
        return Interval(median, float(array.min()), float(array.max()), "min to max")
    drawn = np.random.default_rng(seed).integers(array.size, size=(RESAMPLES, array.size))
    low, high = np.quantile(np.median(array[drawn], axis=1), [0.025, 0.975])
    return Interval(median, float(low), float(high), "bootstrap 95 %")


def variation(values: Sequence[float]) -> float | None:
    """Coefficient of variation: sample standard deviation / |mean|; None for one value or a mean of zero."""
    if len(values) < 2 or not (mean := statistics.fmean(values)):
        return None
    return statistics.stdev(values, mean) / abs(mean)


def percentiles(values: Sequence[float], shares: Sequence[float] = (50, 95, 99)) -> tuple[float, ...]:
    """Percentiles (linear interpolation) of at least one finite value.

    Raises:
        ValueError: `values` is empty or holds NaN or infinity.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not np.isfinite(array).all():
        raise ValueError("percentiles need at least one value, all of them finite")
    return tuple(float(value) for value in np.percentile(array, list(shares)))
