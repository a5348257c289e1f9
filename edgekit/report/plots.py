"""Geometry of the report's plots: every number becomes a place in percent, so a plot fits any width.

The template draws them as inline SVG whose x coordinates are percentages: text keeps its size on a narrow screen, and
colours follow the page. A value that is missing or not finite is not drawn; its words stand beside the plot anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgekit.report.model import Artefact, Report
from edgekit.report.rows import name
from edgekit.report.words import interval, number, percent

_LEFT, _RIGHT = 2.0, 98.0
"""Markers at an end of the axis keep clear of the edge."""
_DECADES_MAX = 7
_LABELS_MAX = 8
COLOURS = 8
"""Colours of the stylesheet, the last one for all further number formats together."""


@dataclass(frozen=True)
class Tick:
    """A grid line."""

    x: float
    label: str


@dataclass(frozen=True)
class LogAxis:
    """From 10^low to 10^high."""

    low: int
    high: int

    def at(self, value: float | None) -> float | None:
        """Place in percent; values off the axis sit at its end, None for no number."""
        return None if value is None or math.isnan(value) else self._place(_power(value))

    def below(self, value: float | None) -> bool:
        """Whether a value lies left of the axis, as 0 always does."""
        return value is not None and _power(value) < self.low

    @property
    def ticks(self) -> list[Tick]:
        """One a decade, fewer when there are many."""
        step = -(-(self.high - self.low) // _LABELS_MAX)
        return [Tick(self._place(power), _decade(power)) for power in range(self.low, self.high + 1, step)]

    def _place(self, power: float) -> float:
        share = (min(max(power, self.low), self.high) - self.low) / (self.high - self.low)
        return round(_LEFT + share * (_RIGHT - _LEFT), 2)


def _power(value: float) -> float:
    """log10, minus infinity for 0 and less."""
    return -math.inf if value <= 0 else math.log10(value)


def _decade(power: int) -> str:
    if -4 <= power <= 3:
        return f"{10.0**power:.{max(0, -power)}f}"
    return f"1e{power}"


def log_axis(values: Iterable[float | None]) -> LogAxis:
    """Whole decades around the positive finite values; at most seven, counted from the largest."""
    powers = [math.log10(v) for v in values if v is not None and math.isfinite(v) and v > 0]
    if not powers:
        return LogAxis(-4, 0)
    high = math.ceil(max(powers))
    low = max(math.floor(min(powers)), high - _DECADES_MAX)
    return LogAxis(low if low < high else high - 1, high)


@dataclass(frozen=True)
class Mark:
    """One statistic on the axis."""

    kind: str
    title: str
    value: str
    x: float | None
    below: bool
    """Drawn as an arrow to the left: smaller than the axis shows."""
    limit: float | None
    """Place of the target's limit."""
    limit_value: str


@dataclass(frozen=True)
class Divergence:
    """A row of the KL divergence plot."""

    name: str
    marks: tuple[Mark, ...]
    range: tuple[float, float] | None
    """From the smallest to the largest mark."""
    interval: tuple[float, float] | None
    interval_value: str
    summary: str


@dataclass(frozen=True)
class DivergencePlot:
    """KL divergence, one row an artefact, on one logarithmic axis in nats."""

    ticks: list[Tick]
    rows: list[Divergence]


_MARKS = (
    ("median", "median", ""),
    ("mean", "mean", "kl_mean_max"),
    ("p99", "99 %", ""),
    ("p999", "99.9 %", "kl_p999_max"),
)


def _statistics(artefact: Artefact) -> dict[str, float]:
    found = artefact.coherence
    return {"median": found.kl_median, "mean": found.kl_mean, "p99": found.kl_p99, "p999": found.kl_p999}


def _limits(artefact: Artefact) -> dict[str, float]:
    return {check.name: check.limit for check in artefact.verdict.checks}


def divergence(report: Report) -> DivergencePlot:
    """Mean with its interval, median, 99 % and 99.9 % of every artefact, and the limits that the target sets."""
    values: list[float | None] = []
    for artefact in report.artefacts:
        limits = _limits(artefact)
        values += [*_statistics(artefact).values(), artefact.coherence.kl_mean_low, artefact.coherence.kl_mean_high]
        values += [limits.get(key) for _, _, key in _MARKS]
    axis = log_axis(values)
    return DivergencePlot(axis.ticks, [_divergence(artefact, axis) for artefact in report.artefacts])


def _divergence(artefact: Artefact, axis: LogAxis) -> Divergence:
    values, limits = _statistics(artefact), _limits(artefact)
    marks = tuple(
        Mark(
            kind,
            title,
            number(values[kind]),
            axis.at(values[kind]),
            axis.below(values[kind]),
            axis.at(limits.get(key)),
            number(limits.get(key)),
        )
        for kind, title, key in _MARKS
    )
    places = [mark.x for mark in marks if mark.x is not None]
    found = artefact.coherence
    words = ", ".join(f"{mark.title} {mark.value}" for mark in marks)
    return Divergence(
        name=name(artefact),
        marks=marks,
        range=(min(places), max(places)) if places else None,
        interval=_span(axis.at(found.kl_mean_low), axis.at(found.kl_mean_high)),
        interval_value=interval(found.kl_mean_low, found.kl_mean_high),
        summary=f"KL divergence of {name(artefact)} in nats on a logarithmic axis: {words}",
    )


def _span(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class Segment:
    """A piece of a stacked bar."""

    title: str
    value: str
    x: float
    width: float
    colour: int


@dataclass(frozen=True)
class Stack:
    """A stacked bar: bytes of one artefact by number format, largest first."""

    name: str
    segments: list[Segment]
    summary: str


def shares(report: Report) -> list[Stack]:
    """One bar an artefact; the same number format has the same colour in all of them."""
    totals: dict[str, float] = {}
    for artefact in report.artefacts:
        for grid, share in artefact.shares.items():
            totals[grid] = totals.get(grid, 0.0) + _proper(share)
    order = sorted(totals, key=lambda grid: (-totals[grid], grid))
    colours = {grid: min(index, COLOURS - 1) for index, grid in enumerate(order)}
    return [_stack(artefact, colours) for artefact in report.artefacts]


def _proper(share: float) -> float:
    return share if math.isfinite(share) and share > 0 else 0.0


def _stack(artefact: Artefact, colours: Mapping[str, int]) -> Stack:
    whole = max(1.0, sum(map(_proper, artefact.shares.values())))
    segments, x = [], 0.0
    for grid, share in sorted(artefact.shares.items(), key=lambda item: (-_proper(item[1]), item[0])):
        width = 100 * _proper(share) / whole
        segments.append(Segment(grid, percent(share), round(x, 2), round(width, 2), colours[grid]))
        x += width
    words = ", ".join(f"{s.title} {s.value}" for s in segments)
    return Stack(name(artefact), segments, f"Bytes of {name(artefact)} by number format: {words}")


@dataclass(frozen=True)
class Bar:
    """A bar from zero."""

    name: str
    value: str
    width: float | None
    kind: str
    """"original", "artefact" or "time": its colour."""


def _bars(items: Sequence[tuple[str, float, str, str]], largest: float | None = None) -> list[Bar]:
    """Bars of (name, value, words, kind) against `largest`, by default the largest finite value."""
    finite = [value for _, value, _, _ in items if math.isfinite(value) and value > 0]
    whole = largest or max(finite, default=1.0)
    return [Bar(title, words, _width(value, whole), kind) for title, value, words, kind in items]


def _width(value: float, whole: float) -> float | None:
    return round(100 * min(max(value / whole, 0.0), 1.0), 2) if math.isfinite(value) else None


def perplexities(report: Report) -> list[Bar]:
    """The original (once, where all artefacts were judged by one reference) and every artefact."""
    references = {artefact.coherence.ppl_reference: name(artefact) for artefact in reversed(report.artefacts)}
    alone = len(references) == 1
    items = [
        ("Original" if alone else f"Original of {title}", value, number(value, 4), "original")
        for value, title in reversed(references.items())
    ]
    items += [
        (name(a), a.coherence.ppl_engine, number(a.coherence.ppl_engine, 4), "artefact") for a in report.artefacts
    ]
    return _bars(items)


def same_top(report: Report) -> list[Bar]:
    """Share of positions with the same top token; a whole bar is every position."""
    found = [(name(a), a.coherence.same_top, percent(a.coherence.same_top), "artefact") for a in report.artefacts]
    return _bars(found, largest=1.0)


def times(report: Report) -> list[Bar]:
    """Seconds of every stage, in the order of the build."""
    return _bars([(stage, seconds, f"{seconds:,.1f} s", "time") for stage, seconds in report.seconds.items()])
