"""From records to effects: damage against that of a plain model of the same full-precision cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.dispersion.measure import Measured
from benchmarks.dispersion.run import Record

F64 = NDArray[np.float64]
BASE = "ce"
_SAMPLES = 2000
CHANGES = (
    *(f"{kind}-{bits}" for bits in (4, 3, 2) for kind in ("nearest", "nearest-corrected", "gptq", "noise")),
    *("skipped-0.3", "skipped-0.5", "skipped-0.7"),
)


@dataclass(frozen=True)
class Point:
    """One model under one change."""

    seed: int
    length: float
    ce: F64
    """(sequences,) in full precision."""
    kl: F64
    """(sequences,) mean over draws."""


@dataclass(frozen=True)
class Effect:
    """Damage as a share of that of plain models of equal cross-entropy."""

    arm: str
    change: str
    ratio: float
    low: float
    high: float
    seeds: tuple[float, ...]
    """Of each seed by itself, against the line of all."""
    models: int
    outside: int
    """Models left out, because no plain model is as good or as bad."""


def points(records: Iterable[Record], arm: str, kind: str, change: str) -> list[Point]:
    """All models of an arm, `kind` "decayed" or "averaged", under a change."""
    return [
        Point(record.seed, model.length, np.array(model.ce_sequences), _sequences(model, change))
        for record in records if record.arm["name"] == arm
        for model in record.models if model.kind == kind
    ]  # fmt: skip


def _sequences(model: Measured, change: str) -> F64:
    found: F64 = np.mean([damage.kl_sequences for damage in model.damages if damage.change == change], axis=0)
    return found


def effect(records: Sequence[Record], name: str, change: str, *, seed: int = 0) -> Effect | None:
    """The effect of an arm; its averaged models under the name with "+lawa". None without two models in range.

    The line is fitted to the decayed models of :data:`BASE`, log KL over cross-entropy. The interval is of 2,000
    bootstrap samples over seeds, drawn for line and arm together, and over sequences.
    """
    arm, _, averaged = name.partition("+")
    base = points(records, BASE, "decayed", change)
    every = points(records, arm, "averaged" if averaged else "decayed", change)
    seeds = sorted({point.seed for point in base} & {point.seed for point in every})
    base = [point for point in base if point.seed in seeds]
    every = [point for point in every if point.seed in seeds]
    if not seeds:
        return None
    whole = np.arange(len(base[0].ce))
    losses = [float(point.ce.mean()) for point in base]
    mine = [point for point in every if min(losses) <= float(point.ce.mean()) <= max(losses)]
    if len(mine) < 2:
        return None
    line = fitted(base, whole)
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(_SAMPLES):
        drawn = generator.choice(seeds, len(seeds))
        places = generator.integers(0, len(whole), len(whole))
        others, own = _of(base, drawn), _of(mine, drawn)
        if own:
            samples.append(_mean(own, fitted(others, places), places))
    low, high = np.exp(np.quantile(samples, (0.025, 0.975)))
    each = tuple(float(np.exp(_mean(_of(mine, [one]), line, whole))) for one in seeds if _of(mine, [one]))
    return Effect(
        arm=name, change=change, ratio=float(np.exp(_mean(mine, line, whole))), low=float(low), high=float(high),
        seeds=each, models=len(mine), outside=len(every) - len(mine),
    )  # fmt: skip


def _of(found: Sequence[Point], seeds: Iterable[int]) -> list[Point]:
    return [point for seed in seeds for point in found if point.seed == seed]


def fitted(found: Sequence[Point], places: NDArray[np.int64]) -> Callable[[float], float]:
    """Least squares of log KL over cross-entropy, both means over the sequences at `places`."""
    return line(
        [float(point.ce[places].mean()) for point in found], [float(point.kl[places].mean()) for point in found]
    )


def line(ce: Sequence[float], kl: Sequence[float]) -> Callable[[float], float]:
    """Least squares of log KL over cross-entropy."""
    x, y = np.array(ce), np.log(kl)
    slope = float(np.dot(x - x.mean(), y - y.mean()) / np.square(x - x.mean()).sum())
    return lambda ce: float(y.mean()) + slope * (ce - float(x.mean()))


def _mean(found: Sequence[Point], line: Callable[[float], float], places: NDArray[np.int64]) -> float:
    return float(np.mean([np.log(point.kl[places].mean()) - line(float(point.ce[places].mean())) for point in found]))


def table(effects: Mapping[tuple[str, str], Effect], arms: Sequence[str], changes: Sequence[str]) -> str:
    """Arms over changes: ratio, interval."""
    lines = ["| arm | " + " | ".join(changes) + " |", "|---" * (len(changes) + 1) + "|"]
    for arm in arms:
        cells = []
        for change in changes:
            found = effects.get((arm, change))
            cells.append("–" if found is None else f"{found.ratio:.2f} ({found.low:.2f}–{found.high:.2f})")
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)
