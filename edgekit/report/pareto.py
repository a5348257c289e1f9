"""The curve of `edgekit plan --pareto` as a page of its own: no network, no scripts, a table for every picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.options import Container
from edgekit.quantize.budgeted import Point
from edgekit.report.pages import page

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 44
_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A grid line."""

    place: float
    label: str


@dataclass(frozen=True)
class Mark:
    """One plan."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Panel:
    """KL divergence (logarithmic, upwards) over one cost."""

    title: str
    unit: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]

    @property
    def path(self) -> str:
        """The marks as the points of a polyline."""
        return " ".join(f"{mark.x},{mark.y}" for mark in self.marks)


@dataclass(frozen=True)
class Curve:
    """One format."""

    name: str
    panels: tuple[Panel, ...]
    rows: tuple[tuple[str, ...], ...]


def render(model: str, target: str, found: Mapping[Container, Sequence[Point]]) -> str:
    """The page as HTML 5 text; equal curves give equal pages."""
    curves = [_curve(name, points) for name, points in found.items()]
    return page(
        "pareto.html.j2", model=model, target=target, curves=curves, width=_WIDTH, height=_HEIGHT, left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP, bottom=_HEIGHT - _BOTTOM,
    )  # fmt: skip


def _curve(name: str, points: Sequence[Point]) -> Curve:
    panels = [_panel("File size", "MB", [(p.file_bytes / 1e6, _kl(p)) for p in points])]
    speeds = [(p.tokens_per_second, _kl(p)) for p in points if p.tokens_per_second is not None]
    if speeds:
        panels.append(_panel("Decode speed, predicted", "tokens/s", speeds))
    return Curve(name.upper(), tuple(panels), tuple(map(_row, points)))


def _kl(point: Point) -> float:
    return point.plan.predicted_kl or 0.0


def _row(point: Point) -> tuple[str, ...]:
    shares = point.plan.shares()
    named = [(grid, 100 * size / point.plan.nbytes) for grid, size in shares.most_common()]
    words = ", ".join(f"{grid} {share:.0f} %" for grid, share in named if share >= 0.5)
    speed = "unknown" if point.tokens_per_second is None else f"{point.tokens_per_second:.1f}"
    return (
        f"{point.file_bytes / 1e6:.2f}", f"{point.plan.effective_bits:.2f}", f"{_kl(point):.4g}", speed, words
    )  # fmt: skip


def _panel(title: str, unit: str, values: Sequence[tuple[float, float]]) -> Panel:
    across = [x for x, _ in values]
    low, high = min(across), max(across)
    step = _round_step((high - low) / _TICKS or max(abs(high), 1.0) / _TICKS)
    low, high = step * math.floor(low / step), step * math.ceil(high / step + 1e-9)
    powers = [math.log10(kl) for _, kl in values if kl > 0] or [0.0]
    bottom, top = math.floor(min(powers)), math.ceil(max(powers))
    top += top == bottom

    def x_at(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y_at(power: float) -> float:
        return round(_HEIGHT - _BOTTOM - (power - bottom) / (top - bottom) * (_HEIGHT - _BOTTOM - _TOP), 1)

    marks = tuple(
        Mark(x_at(x), y_at(math.log10(kl) if kl > 0 else bottom), f"{x:.4g} {unit}: {kl:.4g} nats") for x, kl in values
    )
    count = round((high - low) / step)
    return Panel(
        title, unit, marks,
        tuple(Tick(x_at(low + i * step), f"{low + i * step:g}") for i in range(count + 1)),
        tuple(Tick(y_at(power), f"{10.0**power:g}") for power in range(bottom, top + 1)),
    )  # fmt: skip


def _round_step(rough: float) -> float:
    """The next larger of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9)))
