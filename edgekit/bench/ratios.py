"""Ratios that were measured in turns, by the figures that they stand for: surer than those of two separate medians."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from msgspec import structs

from edgekit.bench.quantities import Quantity
from edgekit.bench.result import BenchResult, EngineRun, Ratio
from edgekit.bench.stats import ENOUGH
from edgekit.bundle.paths import plain

_TITLES = {"decode": "Decode", "prefill": "Prefill of", "ttft": "First token after", "energy": "Energy per token"}
_SPEEDS = ("decode", "prefill")
_MOST = 20


@dataclass(frozen=True)
class InTurns:
    """One figure of a bundle ÷ the same one of another, over the rounds of both."""

    title: str
    """Of the figure, as everywhere else."""
    group: Literal["speed", "energy"]
    more_is_better: bool
    ratio: Quantity
    disturbed: tuple[str, ...]
    """What disturbed the rounds, in words."""

    @property
    def enough(self) -> bool:
        """Whether there are rounds enough for an interval to say anything."""
        return self.ratio.n >= ENOUGH

    @property
    def sure(self) -> bool:
        """Whether the interval leaves no doubt that the two differ."""
        return self.enough and not self.ratio.low <= 1 <= self.ratio.high

    @property
    def better(self) -> bool:
        """Whether the first one's figure is the better one, surely or not."""
        return (self.ratio.value > 1) == self.more_is_better


def key(one: Ratio, run: EngineRun) -> str:
    """Of the figure that a ratio stands for, see :mod:`edgekit.bench.figures`."""
    names = {"decode": "decode", "energy": "decode_energy", "load": f"load/{run.settings.mode or 'own'}"}
    return names.get(one.name) or f"{one.name}/{one.tokens}"


def in_turns(
    result: BenchResult, other: BenchResult, run: EngineRun, *, swapped: bool = False
) -> Mapping[str, InTurns]:
    """Ratios of a run to the same format of the bundle that `other` was measured of, by the keys of their figures.

    Empty where `result` holds no rounds with that very bundle. Emulated ratios say nothing of a board: left out.

    Args:
        result: that holds the rounds.
        other: of the bundle that it is compared with.
        run: of `result`.
        swapped: the other bundle's figure ÷ this one's instead.
    """
    if run.turns is None or result.against is None:
        return {}
    if result.against.manifest_sha256 != other.bundle.manifest_sha256:
        return {}
    return {key(one, run): _figure(one, run, swapped) for one in ratios(run) if _is_one(one.ratio.quantity)}


def _is_one(found: Quantity) -> bool:
    """Whether it says something of the board, whoever wrote it."""
    return found.kind == "measured" and 0 < found.low <= found.value <= found.high < math.inf


def ratios(run: EngineRun) -> Iterator[Ratio]:
    """Of speeds and times, then of energy."""
    if run.turns is not None:
        yield from run.turns.ratios
        yield from (one for one in [run.turns.energy] if one is not None)


def _figure(one: Ratio, run: EngineRun, swapped: bool) -> InTurns:
    window = run.turns.window if run.turns else None
    return InTurns(
        _title(one, run), "energy" if one.name == "energy" else "speed", one.name in _SPEEDS,
        _swapped(one.ratio.quantity) if swapped else one.ratio.quantity,
        tuple(plain(words) for words in window.disturbances[:_MOST]) if window else (),
    )  # fmt: skip


def _swapped(found: Quantity) -> Quantity:
    """The inverse: the median and the ends of an interval change places with those of the inverse values."""
    return structs.replace(found, value=1 / found.value, low=1 / found.high, high=1 / found.low)


def _title(one: Ratio, run: EngineRun) -> str:
    if one.name == "load":
        return f"Loading{f' ({run.settings.mode})' if run.settings.mode else ''}"
    return f"{_TITLES[one.name]} {one.tokens}" if one.name in ("prefill", "ttft") else _TITLES[one.name]
