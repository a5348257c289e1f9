"""What `edgekit survive` measured, as a page: the curve first, then tables and samples; no network, no scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.coherence.metrics import Coherence
from edgekit.dispersion.survival import Point, Survival
from edgekit.report.pages import page
from edgekit.report.words import number, percent, rise

_WIDTH, _HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 44
_FLOOR = 1e-4
"""Divergences below are drawn there: nobody can tell them from none."""
COLOURS = 6
"""Of models; more begin again."""
HEAD = (
    "format", "bits", "stored", "‖ΔW‖/‖W‖", "KL, nats", "95 %", "perplexity ratio", "same top", "seq-rep-4 rise",
    "first divergent token", "KL of noise as large",
)  # fmt: skip


_KEPT = ("format", "bits", "KL, nats", "perplexity ratio", "same top", "seq-rep-4 rise", "KL of noise as large")


@dataclass(frozen=True)
class Mark:
    """One point of a curve."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Curve:
    """One model."""

    number: int
    name: str
    reference: str
    text: str
    marks: tuple[Mark, ...]
    noise: str
    """Points of the polyline of matched noise; "" when it was not measured."""
    rows: tuple[tuple[str, ...], ...]
    samples: tuple[tuple[str, str], ...]

    @property
    def path(self) -> str:
        """Points of the polyline."""
        return " ".join(f"{mark.x},{mark.y}" for mark in self.marks)


def render(found: Sequence[Survival]) -> str:
    """The page as HTML 5 text; equal measurements give equal pages."""
    bottom, top = _powers(found)
    most = max(point.bits for one in found for point in one.points)
    ticks = [bits for bits in (2, 3, 4, 5, 6, 8, 16) if bits <= most + 1]
    return page(
        "survival.html.j2",
        curves=[_curve(index, one, most, bottom, top) for index, one in enumerate(found)], head=HEAD,
        prompt=found[0].prompt, same=len({one.text for one in found}) == 1, width=_WIDTH,
        height=_HEIGHT, left=_LEFT, right=_WIDTH - _RIGHT,
        top=_TOP, bottom=_HEIGHT - _BOTTOM, x_ticks=[(_x(bits, most), str(bits)) for bits in ticks],
        y_ticks=[(_y(10.0**power, bottom, top), f"{10.0**power:g}") for power in range(bottom, top + 1)],
    )  # fmt: skip


SHORT = ("format", "bits", "KL, nats", "ppl ratio", "same top", "seq-rep-4", "of noise")
"""For terminals."""


def short(point: Point) -> tuple[str, ...]:
    """Under :data:`SHORT`: what fits into eighty columns."""
    whole = row(point)
    return tuple(whole[HEAD.index(name)] for name in _KEPT)


def row(point: Point) -> tuple[str, ...]:
    """A format's figures as the tables show them, under :data:`HEAD`."""
    found, generation = point.coherence, point.coherence.generation
    return (
        point.grid, str(point.bits), f"{point.stored_bits:.2f}", number(point.error),
        number(found.kl_mean), _interval(found),
        f"{found.ppl_ratio:.3f}", percent(found.same_top),
        "–" if generation is None else rise(generation.seq_rep_4_rise),
        "–" if generation is None else _divergent(generation.first_divergent_median),
        "–" if point.noise is None else number(point.noise.kl_mean),
    )  # fmt: skip


def _divergent(median: int | None) -> str:
    return "none" if median is None else str(median)


def _interval(found: Coherence) -> str:
    if found.kl_mean_low is None or found.kl_mean_high is None:
        return "–"
    return f"{number(found.kl_mean_low)}–{number(found.kl_mean_high)}"


def _powers(found: Sequence[Survival]) -> tuple[int, int]:
    measured = [each for one in found for point in one.points for each in (point.coherence, point.noise) if each]
    ends = [end for each in measured for end in (each.kl_mean_low, each.kl_mean, each.kl_mean_high) if end is not None]
    values = [max(end, _FLOOR) for end in ends]
    bottom, top = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return bottom, max(top, bottom + 1)


def _x(bits: int, most: int) -> float:
    """Logarithmic: from 16 to 8 bits is as far as from 4 to 2."""
    low, high = math.log2(1.8), math.log2(max(most, 4) * 1.05)
    return round(_LEFT + (math.log2(bits) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(kl: float, bottom: int, top: int) -> float:
    share = (math.log10(max(kl, _FLOOR)) - bottom) / (top - bottom)
    return round(_HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (_HEIGHT - _BOTTOM - _TOP), 1)


def _curve(index: int, found: Survival, most: int, bottom: int, top: int) -> Curve:
    points = sorted(found.points, key=lambda point: point.bits)

    def at(point: Point, kl: float | None) -> float:
        return _y(point.coherence.kl_mean if kl is None else kl, bottom, top)

    marks = tuple(
        Mark(
            _x(point.bits, most), at(point, None), at(point, point.coherence.kl_mean_low),
            at(point, point.coherence.kl_mean_high), f"{point.grid}: {number(point.coherence.kl_mean)} nats",
        )
        for point in points
    )  # fmt: skip
    noise = [f"{_x(p.bits, most)},{at(p, p.noise.kl_mean)}" for p in points if p.noise is not None]
    return Curve(
        number=index % COLOURS, name=found.model, reference=found.reference, text=found.text, marks=marks,
        noise=" ".join(noise),
        rows=tuple(row(point) for point in reversed(points)),
        samples=(("original", found.original), *((point.grid, point.sample) for point in reversed(points))),
    )  # fmt: skip
