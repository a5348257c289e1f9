"""Small panels of curves and bars over steps or layers: every number becomes a place in a viewBox of its own.

A panel is as wide as a phone, and several stand side by side on a wide screen, so that text is never scaled down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from edgekit.report.plots import log_axis
from edgekit.report.words import number

WIDTH, HEIGHT = 360, 224
LEFT, RIGHT, TOP, BOTTOM = 54, 348, 28, 186
DRAWN = 500
"""Points of a curve, bars of a colour."""
_MARKED = 40
"""A curve of at most so many points has a mark at each."""
_WIDE = 30.0
"""Largest over smallest value from which an axis is logarithmic."""
_PARTS = 4
"""Pieces that an axis is cut into, about."""
_LEAST, _MOST = 1e-300, 1e300
"""Sizes beyond are drawn there, or at 0: differences and ratios of what is left are finite."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Tick:
    """A grid line, or a word below the axis."""

    place: float
    label: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Mark:
    """A point with its value for whoever points at it."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Said:
    """A value written beside its point."""

    x: float
    y: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Bar:
    """A bar from the bottom."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    """"before" or "after": its colour."""
    title: str


@dataclass(frozen=True)
class Panel:
    """One picture."""

    title: str
    note: str
    summary: str
    """For who cannot see it."""
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    path: tuple[str, ...] = ()
    """Points of a polyline, each by itself: a page cuts off long strings."""
    marks: tuple[Mark, ...] = ()
    said: tuple[Said, ...] = ()
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class Axis:
    """Values and the share of the height at which each lies; between them as `log` says."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def y(self, value: float) -> float:
        """Place of a value; what is off the axis sits at its end."""
        low, high, at = self.low, self.high, _tame(value)
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(at, low))
        share = (at - low) / (high - low)
        return round(BOTTOM - min(max(share, 0.0), 1.0) * (BOTTOM - TOP), 1)

    @property
    def lines(self) -> tuple[Tick, ...]:
        """The grid lines."""
        return tuple(Tick(self.y(value), label) for value, label in self.ticks)


def axis(values: Iterable[float]) -> Axis:
    """Linear; logarithmic where all values are positive and the largest is more than 30 times the smallest."""
    tame = [_tame(value) for value in values] or [0.0]
    low, high = min(tame), max(tame)
    if low > 0 and high / _WIDE > low:
        powers = log_axis(tame)
        step = -(-(powers.high - powers.low) // _PARTS)
        shown = [10.0**power for power in range(powers.low, powers.high + 1, step)]
        return Axis(10.0**powers.low, 10.0**powers.high, True, tuple((value, _tick(value)) for value in shown))
    least = 1e-3 * max(abs(low), abs(high)) or 1.0
    if high - low < least:  # a flat curve looks flat
        low, high = (max(low - least / 2, 0.0) if low >= 0 else low - least / 2), high + least / 2
    part = nice((high - low) / _PARTS)
    places = range(math.floor(low / part + 1e-9), math.ceil(high / part - 1e-9) + 1)
    return Axis(places[0] * part, places[-1] * part, False, tuple((i * part, _tick(i * part)) for i in places))


def nice(value: float) -> float:
    """The smallest of 1, 2, 5 and 10 times a power of ten that is not below `value`, a positive number."""
    unit = 10.0 ** math.floor(math.log10(value))
    return next((times * unit for times in (1, 2, 5) if times * unit >= value * (1 - 1e-9)), 10 * unit)


def thinned(series: Sequence[tuple[int, float]], most: int = DRAWN) -> list[tuple[int, float]]:
    """At most `most` points: the first, the last, and the lowest and the highest of each stretch between them."""
    if len(series) <= most:
        return list(series)
    inner, stretches = series[1:-1], (most - 2) // 2
    kept = [series[0]]
    for start, end in pairwise(len(inner) * i // stretches for i in range(stretches + 1)):
        part = range(start, end)
        ends = {min(part, key=lambda i: inner[i][1]), max(part, key=lambda i: inner[i][1])}
        kept += [inner[i] for i in sorted(ends)]
    return [*kept, series[-1]]


def spread(items: Sequence[Item], most: int = DRAWN) -> list[Item]:
    """At most `most` of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def curve(title: str, note: str, series: Sequence[tuple[int, float]], steps: int, *, ends: bool = False) -> Panel:
    """A curve over the optimizer's steps.

    Where all values are of one step, they stand side by side in their order.

    Args:
        title: what is drawn.
        note: its unit, and what else is to be known.
        series: step and value; values that are not finite are left out.
        steps: the axis goes from 0 to this.
        ends: whether the first and the last value are written beside their points.
    """
    finite = thinned([(step, value) for step, value in series if math.isfinite(value)])
    still = len({step for step, _ in finite}) <= 1 < len(finite)
    whole = len(finite) - 1 if still else max([steps, 1, *(step for step, _ in finite)])
    y = axis(value for _, value in finite)
    places = [(_x(i if still else step, whole), y.y(value)) for i, (step, value) in enumerate(finite)]
    values = [value for _, value in finite]
    summary = f", first {number(values[0])}, last {number(values[-1])}" if values else ", nothing was measured"
    titles = [f"step {step:,}: {number(value)}" for step, value in finite]
    marks = [Mark(*place, told) for place, told in zip(places, titles, strict=True)]
    return Panel(
        title=title, note=f"{note}, logarithmic" if y.log else note, summary=f"{title}, {note}{summary}",
        x_title="in order" if still else "step",
        x_ticks=_before_after(len(finite)) if still else _steps(whole), y_ticks=y.lines,
        path=tuple(f"{a},{b}" for a, b in places) if len(places) > 1 else (),
        marks=tuple(marks) if len(marks) <= _MARKED else (marks[0], marks[-1]) if ends else (),
        said=_said(places, values) if ends else (),
    )  # fmt: skip


def bars(title: str, note: str, rows: Sequence[tuple[int, float, float]]) -> Panel:
    """Two bars a layer: before and after.

    Args:
        title: what is drawn.
        note: its unit.
        rows: layer, value before, value after; none below 0.
    """
    kept = spread([row for row in rows if math.isfinite(row[1]) and math.isfinite(row[2])])
    values = [value for _, *both in kept for value in both]
    y = axis([*values, *([] if _is_wide(values) else [0.0])])
    share = (RIGHT - LEFT) / max(len(kept), 1)
    drawn = [
        Bar(
            round(LEFT + (i + 0.1 + 0.4 * j) * share, 2), y.y(value), round(0.4 * share, 2),
            round(BOTTOM - y.y(value), 1), kind, f"layer {row[0]:,}, {kind}: {number(value)}",
        )
        for i, row in enumerate(kept) for j, (kind, value) in enumerate(zip(("before", "after"), row[1:], strict=True))
    ]  # fmt: skip
    every = max(1, -(-len(kept) // 8))
    ticks = [Tick(round(LEFT + (i + 0.5) * share, 1), f"{kept[i][0]:,}") for i in range(0, len(kept), every)]
    return Panel(
        title=title, note=f"{note}, logarithmic" if y.log else note, summary=f"{title}: bars before and after",
        x_title="layer", x_ticks=tuple(ticks), y_ticks=y.lines, bars=tuple(drawn),
    )  # fmt: skip


def _is_wide(values: Sequence[float]) -> bool:
    return bool(values) and min(map(_tame, values)) > 0 and axis(values).log


def _tame(value: float) -> float:
    """`value`, 0 where nothing can be told from it, and no larger than can be reckoned with."""
    return 0.0 if abs(value) < _LEAST else min(max(value, -_MOST), _MOST)


def _tick(value: float) -> str:
    text = f"{value or 0.0:.6g}"
    if "e" in text:
        mantissa, power = text.split("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else text


def _x(place: float, whole: float) -> float:
    return round(LEFT + place / whole * (RIGHT - LEFT), 1)


def _steps(whole: int) -> tuple[Tick, ...]:
    step = max(1, round(nice(whole / _PARTS)))
    shown = range(0, whole + 1, step)
    return tuple(Tick(_x(at, whole), f"{at:,}", "end" if _x(at, whole) > RIGHT - 20 else "middle") for at in shown)


def _before_after(count: int) -> tuple[Tick, ...]:
    return (Tick(_x(0, 1), "before", "start"), Tick(_x(count - 1, count - 1), "after", "end"))


def _said(places: Sequence[tuple[float, float]], values: Sequence[float]) -> tuple[Said, ...]:
    """The first and the last value, each on the side that the curve does not come from or go to."""
    if not places:
        return ()
    (x, y), (end_x, end_y) = places[0], places[-1]
    if len(places) == 1:
        return (Said(*_beside(x, y), number(values[0]), "end" if x > WIDTH / 2 else "start"),)
    falls = end_y > y
    return (
        Said(x + 5, _above(y) if falls else _below(y), number(values[0]), "start"),
        Said(end_x, _below(end_y) if falls else _above(end_y), number(values[-1]), "end"),
    )


def _beside(x: float, y: float) -> tuple[float, float]:
    return (x - 8 if x > WIDTH / 2 else x + 8), y + 4


def _above(y: float) -> float:
    return round(y - 8, 1)


def _below(y: float) -> float:
    return round(y + 18 if y + 18 < BOTTOM else y - 8, 1)
