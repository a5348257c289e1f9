"""What `edgekit economy` counted, as a page: the curve first, then tables; no network, no scripts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgekit.economy.record import Economy, Part, Point
from edgekit.report.pages import page
from edgekit.report.words import mebibytes, millions, number, percent

_WIDTH, _HEIGHT, _LOW = 640, 340, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 44
_FLOOR = 1e-4
"""Divergences below are drawn there: nobody can tell them from none."""
COLOURS = 6
"""Of models; more begin again."""
HEAD = (
    "asked", "left out", "KL predicted", "KL, nats", "95 %", "same top", "perplexity ratio", "MiB not read",
)  # fmt: skip
_LONG = ("KL predicted",)
"""Left out in terminals."""
SHORT = ("asked", "left out", "KL, nats", "95 %", "same top", "ppl ×", "MiB less")
"""The same for terminals."""
PARTS = ("part", "connections", "fire", "MiB", "KL alone, nats")


@dataclass(frozen=True)
class Mark:
    """One point of a curve."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Bar:
    """One block."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Shown:
    """One model."""

    number: int
    name: str
    reference: str
    text: str
    marks: tuple[Mark, ...]
    chosen: str
    whole: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    roles: tuple[tuple[str, ...], ...]
    blocks: tuple[tuple[str, ...], ...]
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    share: str
    uniform: bool
    highest: str

    @property
    def path(self) -> str:
        """Points of the polyline."""
        return " ".join(f"{mark.x},{mark.y}" for mark in self.marks)


def render(found: Sequence[Economy]) -> str:
    """The page as HTML 5 text; equal measurements give equal pages."""
    bottom, top = _powers(found)
    most = max(0.1, math.ceil(10 * max(point.skipped for one in found for point in one.points)) / 10)
    return page(
        "economy.html.j2", models=[_shown(index, one, most, bottom, top) for index, one in enumerate(found)],
        head=HEAD, parts=PARTS, same=len({one.text for one in found}) == 1, width=_WIDTH, height=_HEIGHT, low=_LOW,
        left=_LEFT, right=_WIDTH - _RIGHT, top=_TOP, bottom=_HEIGHT - _BOTTOM, floor=_LOW - 24,
        x_ticks=[(_x(step / 10, most), f"{step * 10} %") for step in range(round(10 * most) + 1)],
        y_ticks=[(_y(10.0**power, bottom, top), f"{10.0**power:g}") for power in range(bottom, top + 1)],
    )  # fmt: skip


def title(found: Economy) -> str:
    """Of a table."""
    return f"{_name(found)}, compared with {found.reference} in full precision"


def _name(found: Economy) -> str:
    return f"{found.model}, {found.weights}" if found.weights else found.model


def short(found: Economy, point: Point) -> tuple[str, ...]:
    """A point's figures under :data:`SHORT`."""
    return tuple(cell for name, cell in zip(HEAD, row(found, point), strict=True) if name not in _LONG)


def row(found: Economy, point: Point) -> tuple[str, ...]:
    """A point's figures under :data:`HEAD`; the chosen one has a star."""
    mark = "*" if point.asked == found.chosen else ""
    return (
        f"{mark}{percent(point.asked)}", f"{100 * point.skipped:.1f} %",
        "–" if point.predicted_kl is None else number(point.predicted_kl), number(point.kl_mean), _interval(point),
        f"{100 * point.same_top:.1f} %", f"{point.ppl_ratio:.3f}", f"{point.unread / 2**20:.1f}",
    )  # fmt: skip


def whole_in_words(found: Economy) -> tuple[str, ...]:
    """What a token needs with everything read."""
    return (
        f"A token is multiplied by {millions(found.connections)} weights, {millions(found.linear)} of them in linear "
        f"layers: {millions(found.multiply_adds)} multiply-adds with a context of {found.context} tokens.",
        f"It reads {mebibytes(found.bytes_per_token)} as {found.formats}. Predicted on {found.target}: "
        f"{_speed(found.tokens_per_second)}, {_energy(found.millijoules)} ({found.basis}).",
        *_measured(found),
    )


def _measured(found: Economy) -> Iterator[str]:
    if (said := found.measured) is not None:
        energy = "no sensor for energy" if said.millijoules is None else _energy(said.millijoules)
        yield f"Measured on {said.device}, {said.bundle}: {_speed(said.tokens_per_second)}, {energy}."


def chosen_in_words(found: Economy) -> str:
    """What may be left out."""
    best = found.best
    if best.skipped == 0:
        return f"No measured share of the connections can be left out within {number(found.max_kl)} nats."
    return (
        f"* Within {number(found.max_kl)} nats {percent(best.skipped)} of the linear layers' connections need not fire "
        f"(KL divergence {number(found.points[0].kl_mean)} to {number(best.kl_mean)}): {mebibytes(best.unread)} would "
        "not be read where each input's weights lie together. Predicted then: "
        f"{_speed(found.tokens_per_second_chosen)}, {_energy(found.millijoules_chosen)}. "
        "Only edgekit's own 3-bit ONNX operator skips any (edgekit build --active); docs/economy.md says how fast."
    )


def _speed(value: float | None) -> str:
    return "unknown tokens/s" if value is None else f"{value:.1f} tokens/s"


def _energy(value: float | None) -> str:
    return "unknown energy" if value is None else f"{number(value)} mJ a token"


def _interval(point: Point) -> str:
    if point.kl_low is None or point.kl_high is None:
        return "–"
    return f"{number(point.kl_low)}–{number(point.kl_high)}"


def _powers(found: Sequence[Economy]) -> tuple[int, int]:
    ends = [end for one in found for p in one.points for end in (p.kl_low, p.kl_mean, p.kl_high) if end is not None]
    values = [max(end, _FLOOR) for end in ends]
    bottom, top = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return bottom, max(top, bottom + 1)


def _x(share: float, most: float) -> float:
    return round(_LEFT + share / most * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(kl: float, bottom: int, top: int) -> float:
    share = (math.log10(max(kl, _FLOOR)) - bottom) / (top - bottom)
    return round(_HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (_HEIGHT - _BOTTOM - _TOP), 1)


def _shown(index: int, found: Economy, most: float, bottom: int, top: int) -> Shown:
    def mark(point: Point) -> Mark:
        ends = [point.kl_mean if end is None else end for end in (point.kl_low, point.kl_high)]
        return Mark(
            _x(point.skipped, most), _y(point.kl_mean, bottom, top), _y(ends[0], bottom, top), _y(ends[1], bottom, top),
            f"{percent(point.skipped)} skipped: {number(point.kl_mean)} nats",
        )  # fmt: skip

    highest = max((part.kl or 0.0 for part in found.blocks), default=0.0)
    return Shown(
        number=index % COLOURS, name=_name(found), reference=found.reference, text=found.text,
        marks=tuple(mark(point) for point in sorted(found.points, key=lambda point: point.skipped)),
        chosen=chosen_in_words(found), whole=whole_in_words(found),
        rows=tuple(row(found, point) for point in found.points), roles=tuple(map(_part, found.roles)),
        blocks=tuple(map(_part, found.blocks)), bars=tuple(_bars(found.blocks, highest)),
        ticks=tuple(_ticks(len(found.blocks))), share=percent(found.chosen), uniform=found.uniform,
        highest=number(highest),
    )  # fmt: skip


def _part(part: Part) -> tuple[str, ...]:
    return (
        part.name, millions(part.connections), percent(part.fired), f"{part.nbytes / 2**20:.1f}",
        "–" if part.kl is None else number(part.kl),
    )  # fmt: skip


def _bars(blocks: Sequence[Part], highest: float) -> Iterator[Bar]:
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(blocks))
    for index, part in enumerate(blocks):
        height = (part.kl or 0.0) / highest * (_LOW - 24 - _TOP) if highest else 0.0
        yield Bar(
            round(_LEFT + (index + 0.15) * step, 1), round(_LOW - 24 - height, 1), round(0.7 * step, 1),
            round(height, 1), f"block {part.name}: {number(part.kl)} nats",
        )  # fmt: skip


def _ticks(count: int) -> Iterator[tuple[float, str]]:
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, count)
    for index in range(0, count, max(1, count // 8)):
        yield round(_LEFT + (index + 0.5) * step, 1), str(index)
