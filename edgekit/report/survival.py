"""What `edgekit survive` measured, as a page: the curve first, then tables and samples; no network, no scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    "format", "engine", "bits", "stored", "file, MiB", "‖ΔW‖/‖W‖", "KL, nats", "95 %", "perplexity ratio", "same top",
    "seq-rep-4 rise", "first divergent token", "KL of noise as large",
)  # fmt: skip
_OF_FILES = ("engine", "file, MiB")
"""Columns that are left out where no file was measured."""
_ENGINES = {"torch": "PyTorch", "llama.cpp": "llama.cpp", "onnxruntime": "onnxruntime"}
_SIDEWAYS = {"torch": 0.0, "llama.cpp": -7.0, "onnxruntime": 7.0}
"""Marks of one format in several engines would hide each other."""


@dataclass(frozen=True)
class Mark:
    """One point of a curve."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Series:
    """One model in one engine."""

    engine: str
    """As :attr:`edgekit.dispersion.survival.Point.engine`."""
    marks: tuple[Mark, ...]

    @property
    def path(self) -> str:
        """Points of the polyline, see :func:`_line`."""
        return _line((mark.x, mark.y) for mark in self.marks)


@dataclass(frozen=True)
class Curve:
    """One model."""

    number: int
    name: str
    reference: str
    text: str
    series: tuple[Series, ...]
    noise: str
    """Points of the polyline of matched noise; "" when it was not measured."""
    rows: tuple[tuple[str, ...], ...]
    samples: tuple[tuple[str, str], ...]


def render(found: Sequence[Survival], *, label: str = "") -> str:
    """The page as HTML 5 text, `label` above the picture; equal measurements give equal pages."""
    bottom, top = _powers(found)
    most = max(point.bits for one in found for point in one.points)
    ticks = [bits for bits in (2, 3, 4, 5, 6, 8, 16) if bits <= most + 1]
    points = [point for one in found for point in one.points]
    head = columns(points)
    return page(
        "survival.html.j2",
        curves=[_curve(index, one, most, bottom, top, head) for index, one in enumerate(found)], head=head,
        engines=[engine for engine in _ENGINES if any(point.engine == engine for point in points)],
        prompt=found[0].prompt, label=label, same=len({one.text for one in found}) == 1, width=_WIDTH,
        height=_HEIGHT, left=_LEFT, right=_WIDTH - _RIGHT,
        top=_TOP, bottom=_HEIGHT - _BOTTOM, x_ticks=[(_x(bits, most), str(bits)) for bits in ticks],
        y_ticks=[(_y(10.0**power, bottom, top), f"{10.0**power:g}") for power in range(bottom, top + 1)],
    )  # fmt: skip


_SHORT = {
    "format": "format", "engine": "engine", "bits": "bits", "file, MiB": "MiB", "KL, nats": "KL, nats",
    "perplexity ratio": "ppl ratio", "same top": "same top", "seq-rep-4 rise": "seq-rep-4",
    "KL of noise as large": "of noise",
}  # fmt: skip
_SHORTER = {"perplexity ratio": "ppl ×", "seq-rep-4 rise": "rep-4"}
"""Beside the columns of files."""


def columns(points: Iterable[Point]) -> tuple[str, ...]:
    """Those of :data:`HEAD` that say something."""
    files = any(point.nbytes is not None for point in points)
    return tuple(name for name in HEAD if files or name not in _OF_FILES)


def short(points: Sequence[Point]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Titles and rows for terminals: what fits into eighty columns."""
    kept, titles = [name for name in columns(points) if name in _SHORT], _SHORT
    if "engine" in kept:
        kept, titles = [name for name in kept if name not in ("bits", "KL of noise as large")], _SHORT | _SHORTER
    return tuple(titles[name] for name in kept), [row(point, kept) for point in points]


def row(point: Point, names: Iterable[str]) -> tuple[str, ...]:
    """A format's figures as the tables show them, in these columns of :data:`HEAD`."""
    found, generation = point.coherence, point.coherence.generation
    cells = (
        point.grid, _ENGINES.get(point.engine, point.engine), str(point.bits), f"{point.stored_bits:.2f}",
        "–" if point.nbytes is None else f"{point.nbytes / (1 << 20):.1f}", number(point.error),
        number(found.kl_mean), _interval(found),
        f"{found.ppl_ratio:.3f}", percent(found.same_top),
        "–" if generation is None else rise(generation.seq_rep_4_rise),
        "–" if generation is None else _divergent(generation.first_divergent_median),
        "–" if point.noise is None else number(point.noise.kl_mean),
    )  # fmt: skip
    whole = dict(zip(HEAD, cells, strict=True))
    return tuple(whole[name] for name in names)


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


def _curve(index: int, found: Survival, most: int, bottom: int, top: int, head: Sequence[str]) -> Curve:
    points = sorted(found.points, key=lambda point: (point.bits, point.stored_bits, point.engine != "torch"))

    def at(kl: float | None, otherwise: float) -> float:
        return _y(otherwise if kl is None else kl, bottom, top)

    def mark(point: Point) -> Mark:
        said, mean = point.coherence, point.coherence.kl_mean
        return Mark(
            round(_x(point.bits, most) + _SIDEWAYS.get(point.engine, 0.0), 1), at(mean, mean),
            at(said.kl_mean_low, mean), at(said.kl_mean_high, mean), f"{_named(point, head)}: {number(mean)} nats",
        )  # fmt: skip

    series = [
        Series(engine, tuple(mark(point) for point in points if point.engine == engine))
        for engine in dict.fromkeys(point.engine for point in points)
    ]
    noise = ((_x(p.bits, most), at(p.noise.kl_mean, 0.0)) for p in points if p.noise is not None)
    return Curve(
        number=index % COLOURS, name=found.model, reference=found.reference, text=found.text, series=tuple(series),
        noise=_line(noise),
        rows=tuple(row(point, head) for point in reversed(points)),
        samples=(("original", found.original), *((_named(point, head), point.sample) for point in reversed(points))),
    )  # fmt: skip


def _line(places: Iterable[tuple[float, float]]) -> str:
    """Points of a polyline: of several formats with as many bits, through the one that lost least."""
    lowest: dict[float, float] = {}
    for x, y in places:
        lowest[x] = max(y, lowest.get(x, y))  # SVG counts downwards
    return " ".join(f"{x},{y}" for x, y in sorted(lowest.items()))


def _named(point: Point, head: Sequence[str]) -> str:
    return f"{point.grid} in {_ENGINES.get(point.engine, point.engine)}" if "engine" in head else point.grid
