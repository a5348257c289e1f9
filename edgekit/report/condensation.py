"""What `edgekit condensation` measured, as a page: no network, no scripts, a table for every picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgekit.dispersion.condensation import BINS, Condensation, Layer
from edgekit.report.pages import page
from edgekit.report.words import number

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 44
_FULL = 10.0
"""Density that is drawn in full colour, as in the paper's heat-maps."""
_LEAST = 0.02
"""Share of that below which a cell is left out: nobody sees it."""
_TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)
HEAD = (
    "layer", "mean cosine", "entropy of singular values, bits", "share of the first", "kurtosis", "largest", "massive",
    "kurtosis of weights",
)  # fmt: skip

SHORT = ("layer", "cosine", "entropy", "first", "kurtosis", "largest", "massive", "of weights")
"""The same for terminals."""


@dataclass(frozen=True)
class Cell:
    """A rectangle of the heat-map."""

    x: float
    y: float
    width: float
    height: float
    opacity: float


@dataclass(frozen=True)
class Picture:
    """One model."""

    name: str
    text: str
    trend: str
    cells: tuple[Cell, ...]
    means: str
    """Points of a polyline."""
    x_ticks: tuple[tuple[float, str], ...]
    rows: tuple[tuple[str, ...], ...]


def render(found: Sequence[Condensation]) -> str:
    """The page as HTML 5 text; equal measurements give equal pages."""
    return page(
        "condensation.html.j2", pictures=[_picture(one) for one in found], head=HEAD,
        y_ticks=[(_y(value), f"{value:g}") for value in _TICKS],
        width=_WIDTH, height=_HEIGHT, left=_LEFT, right=_WIDTH - _RIGHT, top=_TOP, bottom=_HEIGHT - _BOTTOM,
    )  # fmt: skip


def row(index: int, layer: Layer) -> tuple[str, ...]:
    """A layer's figures as the table shows them, under :data:`HEAD`."""
    return (
        str(index), f"{layer.mean_cosine:.3f}", f"{layer.singular_value_entropy:.2f}",
        f"{100 * layer.first_share:.1f} %", number(layer.kurtosis), number(layer.largest), f"{layer.massive:,}",
        "–" if layer.weight_kurtosis is None else number(layer.weight_kurtosis),
    )  # fmt: skip


def trend_in_words(found: Condensation) -> str:
    """Whether the mean cosine rises with depth."""
    if found.spearman is None or found.kendall is None:
        return "The mean cosine is the same in all layers."
    return (
        f"Mean cosine against depth: Spearman's ρ {found.spearman:+.2f}, Kendall's τ {found.kendall:+.2f} "
        "(+1: condenses with every layer, -1: disperses)."
    )


def _picture(found: Condensation) -> Picture:
    count = len(found.layers)
    step = max(1, count // 8)
    return Picture(
        name=found.model, text=f"{found.sequences} sequences of {found.length} tokens, {found.text}",
        trend=trend_in_words(found), cells=tuple(_cells(found.layers)),
        means=" ".join(f"{_x(i + 0.5, count)},{_y(layer.mean_cosine)}" for i, layer in enumerate(found.layers)),
        x_ticks=tuple((_x(i + 0.5, count), str(i)) for i in range(0, count, step)),
        rows=tuple(row(index, layer) for index, layer in enumerate(found.layers)),
    )  # fmt: skip


def _cells(layers: Sequence[Layer]) -> Iterator[Cell]:
    width, height = _x(1, len(layers)) - _LEFT, (_y(-1) - _y(1)) / BINS
    for index, layer in enumerate(layers):
        for place, density in enumerate(layer.density):
            if (share := min(1.0, density / _FULL)) >= _LEAST:
                top = _y(-1 + 2 * (place + 1) / BINS)
                yield Cell(_x(index, len(layers)), top, round(width, 2), round(height, 2), round(share, 2))


def _x(place: float, count: int) -> float:
    return round(_LEFT + place / count * (_WIDTH - _LEFT - _RIGHT), 2)


def _y(cosine: float) -> float:
    return round(_TOP + (1 - cosine) / 2 * (_HEIGHT - _TOP - _BOTTOM), 2)
