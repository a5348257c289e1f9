"""What real files of the twins lose, against plain twins of the same full-precision cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.dispersion.artefacts import Twin
from benchmarks.dispersion.effects import BASE, line


def twins(folder: Path) -> list[Twin]:
    """All whose files were measured."""
    return [msgspec.json.decode(path.read_bytes(), type=Twin) for path in sorted(folder.glob("artefacts-*.json"))]


def ratios(found: Sequence[Twin], arm: str, place: str) -> list[float]:
    """KL divergence of the arm's files of one format as a share of plain twins', a mean for each seed.

    As :func:`benchmarks.dispersion.effects.effect`: a straight line of log KL over cross-entropy through the plain
    twins of the seeds that both have; twins beyond their range are left out. Empty with fewer than two plain ones.
    """
    points = {
        name: [(twin.seed, twin.ce, kl) for twin in found if twin.arm == name and (kl := _kl(twin, place)) is not None]
        for name in (BASE, arm)
    }
    seeds = {seed for seed, _, _ in points[BASE]} & {seed for seed, _, _ in points[arm]}
    base = [(ce, kl) for seed, ce, kl in points[BASE] if seed in seeds]
    if len(base) < 2:
        return []
    losses = [ce for ce, _ in base]
    at = line(losses, [kl for _, kl in base])
    made: dict[int, list[float]] = {}
    for seed, ce, kl in points[arm]:
        if seed in seeds and min(losses) <= ce <= max(losses):
            made.setdefault(seed, []).append(float(np.log(kl)) - at(ce))
    return [float(np.exp(np.mean(each))) for _, each in sorted(made.items())]


def table(found: Sequence[Twin]) -> str:
    """Arms over formats: the mean over seeds, and each seed."""
    places = list(dict.fromkeys(f"{made.engine}: {made.format}" for twin in found for made in twin.made))
    few = [place for place in places if not place.endswith("F16")]
    lines = ["| arm | " + " | ".join(few) + " |", "|---" * (len(few) + 1) + "|"]
    for arm in dict.fromkeys(twin.arm for twin in found if twin.arm != BASE):
        cells = []
        for place in few:
            seeds = ratios(found, arm, place)
            words = ", ".join(f"{seed:.2f}" for seed in seeds)
            cells.append(f"{np.exp(np.mean(np.log(seeds))):.2f} ({words})" if seeds else "–")
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    most = max((made.kl for twin in found for made in twin.made if made.format == "F16"), default=0.0)
    return "\n".join(lines) + f"\n\n{len(found)} twins; in F16 llama.cpp itself is at most {most:.1g} nats off."


def _kl(twin: Twin, place: str) -> float | None:
    return next((made.kl for made in twin.made if f"{made.engine}: {made.format}" == place), None)
