"""The effects once more, against straight lines from one length of the plain models to the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.dispersion.effects import BASE, points
from benchmarks.dispersion.run import Record


def ratio(found: Sequence[Record], name: str, change: str) -> float | None:
    """As :func:`benchmarks.dispersion.effects.effect`, without an interval; None without a model in range."""
    arm, _, averaged = name.partition("+")
    base = points(found, BASE, "decayed", change)
    lengths = sorted({point.length for point in base}, reverse=True)  # the best first
    x = [np.mean([point.ce.mean() for point in base if point.length == length]) for length in lengths]
    y = [np.mean([np.log(point.kl.mean()) for point in base if point.length == length]) for length in lengths]
    mine = points(found, arm, "averaged" if averaged else "decayed", change)
    inside = [point for point in mine if x[0] <= point.ce.mean() <= x[-1]]
    if not inside:
        return None
    return float(np.exp(np.mean([np.log(p.kl.mean()) - np.interp(p.ce.mean(), x, y) for p in inside])))


def table(found: Sequence[Record], names: Sequence[str], changes: Sequence[str]) -> str:
    """Arms over changes."""
    lines = ["| arm | " + " | ".join(changes) + " |", "|---" * (len(changes) + 1) + "|"]
    for name in names:
        every = (ratio(found, name, change) for change in changes)
        lines.append(f"| `{name}` | " + " | ".join("–" if one is None else f"{one:.2f}" for one in every) + " |")
    return "\n".join(lines)
