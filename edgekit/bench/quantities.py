"""Figures of bench.json: medians with intervals, and what the board's sensors said meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from edgekit.bench.plan import Stop
from edgekit.bench.stats import median_interval, variation

Kind = Literal["measured", "emulated", "predicted"]
"""Emulated: computed by an emulator of the board, so right or wrong, but never as fast or slow as the board."""
DeviceKind = Literal["measured", "emulated"]
Series = Annotated[tuple[float, ...], Meta(min_length=1, max_length=10_000)]


class Quantity(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure: the median of its repetitions, and how sure it is."""

    value: float
    low: float
    high: float
    n: int
    """Repetitions."""
    unit: Annotated[str, Meta(max_length=40)]
    kind: Kind
    interval: Annotated[str, Meta(max_length=40)]
    """"bootstrap 95 %" or, for under six repetitions, "min to max"."""


class Figure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A quantity with every repetition of it."""

    quantity: Quantity
    values: Series
    variation: float | None
    """Coefficient of variation of `values`; None for a single one."""
    stopped: Stop = "repeats"
    """Why no more repetitions were made."""


class TracePoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the board's sensors said; None where there is none."""

    t: float
    """Seconds since the run began."""
    temp_c: float | None = None
    clock_mhz: float | None = None
    power_w: float | None = None
    throttled: int | None = None


class Window(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When something was measured, and what the board did meanwhile."""

    begin: float
    """Seconds since the run began; time in which nothing ran after an interruption is counted."""
    end: float
    trace: Annotated[tuple[TracePoint, ...], Meta(max_length=1000)] = ()
    disturbances: tuple[str, ...] = ()
    """What the board says spoiled it, in words."""


class Percentiles(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the times between one token and the next, all repetitions together; milliseconds."""

    p50: float
    p95: float
    p99: float
    n: int
    kind: Kind


def quantity(values: Sequence[float], unit: str, kind: Kind) -> Quantity:
    """Median and interval of at least one finite value."""
    found = median_interval(values)
    return Quantity(
        value=found.median, low=found.low, high=found.high, n=len(values), unit=unit, kind=kind, interval=found.method
    )


def figure(values: Sequence[float], unit: str, kind: Kind, stopped: Stop = "repeats") -> Figure:
    """A figure of at least one finite value."""
    return Figure(
        quantity=quantity(values, unit, kind), values=tuple(values), variation=variation(values), stopped=stopped
    )
