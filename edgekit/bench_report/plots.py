"""Geometry of the plots: every number becomes a place in percent, so a plot fits any width.

Lines are drawn in a box of 100 × 100 that is stretched; y grows downwards. What is missing or not finite is not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

from edgekit.bench.figures import Named
from edgekit.bench.result import Kind, Quantity
from edgekit.bench_report.words import amount, interval
from edgekit.report.words import number

POINTS = 400
"""Of one line."""
_GAP_S = 5.0
"""Seconds without a sample that interrupt a line."""


@dataclass(frozen=True)
class Bar:
    """A bar from zero, with its interval."""

    name: str
    value: str
    interval: str
    kind: Kind
    width: float | None
    low: float | None
    high: float | None
    mark: str = ""
    """A word beside the name."""

    @property
    def summary(self) -> str:
        """In one sentence."""
        spread = f", interval {self.interval}" if self.interval else ""
        return f"{self.name}: {self.value}{spread}, {self.kind}"


@dataclass(frozen=True)
class Bars:
    """Bars on one axis."""

    title: str
    caption: str
    bars: list[Bar]


def bars(title: str, caption: str, found: Iterable[tuple[str, Named | Quantity, str]]) -> Bars | None:
    """Bars of (name, figure, mark) against the largest; None when there are none."""
    items = list(found)
    ends = [value for _, one, _ in items for value in (one.value, one.high) if value is not None]
    whole = max((value for value in ends if math.isfinite(value) and value > 0), default=1.0)
    made = [_bar(name, one, mark, whole) for name, one, mark in items]
    return Bars(title, caption, made) if made else None


def _bar(name: str, one: Named | Quantity, mark: str, whole: float) -> Bar:
    low, high = (None, None) if one.low is None or one.high is None else sorted((one.low, one.high))
    return Bar(
        name, amount(one.value, one.unit), interval(low, high, one.unit), one.kind, _share(one.value, whole),
        _share(low, whole), _share(high, whole), mark,
    )  # fmt: skip


def _share(value: float | None, whole: float) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(100 * min(max(value / whole, 0.0), 1.0), 2)


@dataclass(frozen=True)
class Tick:
    """A grid line and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A line, in pieces where something is missing."""

    name: str
    colour: int
    pieces: list[str]
    """Points of a polyline."""


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis that is shaded."""

    x: float
    width: float
    title: str


@dataclass(frozen=True)
class Chart:
    """Lines over one x axis."""

    title: str
    caption: str
    x_title: str
    y_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    bands: list[Band]
    kind: Kind
    summary: str


Points = Sequence[tuple[float, float | None]]


def chart(
    title: str, caption: str, axes: tuple[str, str], series: Sequence[tuple[str, Points]], kind: Kind,
    *, bands: Sequence[tuple[float, float, str]] = (), from_zero: bool = True, gap: float = math.inf,
) -> Chart | None:  # fmt: skip
    """Lines of (x, y); None when no point is known.

    Args:
        title: of the figure.
        caption: what it shows.
        axes: what x and y are.
        series: name and points by x; a y of None is a gap.
        kind: where the figures come from.
        bands: begin, end and title of stretches to shade.
        from_zero: the y axis begins at zero.
        gap: a larger step of x interrupts a line.
    """
    known = [[(x, y) for x, y in thin(points) if _drawable(x)] for _, points in series]
    ys = [y for points in known for _, y in points if _drawable(y)]
    if not ys:
        return None
    xs = [x for points in known for x, _ in points]
    across = _axis(min(xs), max(xs), rounded=False)
    up = _axis(min(0.0, *ys) if from_zero else min(ys), max(ys))
    lines = [
        Line(name, index % 7, list(_pieces(points, across, up, gap)))
        for index, ((name, _), points) in enumerate(zip(series, known, strict=True))
    ]
    said = "; ".join(f"{name}: {_range(points)}" for (name, _), points in zip(series, known, strict=True))
    return Chart(
        title, caption, axes[0], axes[1], across.ticks(), [Tick(round(100 - t.at, 2), t.label) for t in up.ticks()],
        lines, list(_bands(bands, across)), kind, f"{title}, {axes[1]}: {said}",
    )  # fmt: skip


def _drawable(value: float | None) -> TypeGuard[float]:
    """Neither missing nor so large that a difference of two would be infinite."""
    return value is not None and abs(value) < 1e300


def thin(points: Points) -> Points:
    """At most POINTS of them, evenly."""
    step = -(-len(points) // POINTS) if points else 1
    return points[::step]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    step: float

    def at(self, value: float) -> float:
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 2)

    def ticks(self) -> list[Tick]:
        first = math.ceil(self.low / self.step - 1e-9)
        last = math.floor(self.high / self.step + 1e-9)
        return [Tick(self.at(i * self.step), f"{i * self.step:,.6g}") for i in range(first, last + 1)]


def _axis(low: float, high: float, *, rounded: bool = True) -> _Axis:
    """Steps of 1, 2 or 5 over both values; ends are whole steps when `rounded`."""
    span = high - low
    if span <= max(abs(low), abs(high)) * 1e-9 or span < 1e-300:
        low, high = low - max(abs(low) * 0.05, 1e-6), high + max(abs(high) * 0.05, 1e-6)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    if not rounded:
        return _Axis(low, high, step)
    return _Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step)


def _pieces(points: Points, across: _Axis, up: _Axis, gap: float) -> Iterator[str]:
    piece: list[str] = []
    last = -math.inf
    for x, y in points:
        if piece and (not _drawable(y) or x - last > gap):
            yield _joined(piece)
            piece = []
        if _drawable(y):
            piece.append(f"{across.at(x)},{round(100 - up.at(y), 2)}")
            last = x
    if piece:
        yield _joined(piece)


def _joined(piece: list[str]) -> str:
    """A line of one point is drawn as a dot when the point stands twice."""
    return " ".join(piece * 2 if len(piece) == 1 else piece)


def _bands(bands: Sequence[tuple[float, float, str]], across: _Axis) -> Iterator[Band]:
    for begin, end, title in bands[:100]:
        if math.isfinite(begin) and math.isfinite(end) and end >= begin:
            x = across.at(begin)
            yield Band(x, round(max(across.at(end) - x, 0.3), 2), title)


def _range(points: Points) -> str:
    ys = [y for _, y in points if _drawable(y)]
    return f"{number(min(ys))} to {number(max(ys))}" if ys else "no figures"


def gap_of(times: Sequence[float]) -> float:
    """Seconds without a sample that interrupt a trace: five usual distances, at least five seconds."""
    steps = sorted(b - a for a, b in pairwise(times) if b > a)
    return max(_GAP_S, 5 * steps[len(steps) // 2]) if steps else _GAP_S
