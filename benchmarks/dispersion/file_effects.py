"""What real files of the twins lose, against plain twins of the same full-precision cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.dispersion.artefacts import Twin
from benchmarks.dispersion.effects import BASE
from benchmarks.dispersion.run import Record

Losses = Mapping[tuple[str, int, float], float]


def twins(folder: Path) -> list[Twin]:
    """All whose files were measured."""
    return [msgspec.json.decode(path.read_bytes(), type=Twin) for path in sorted(folder.glob("artefacts-*.json"))]


def losses(found: Sequence[Record]) -> dict[tuple[str, int, float], float]:
    """Arm, seed and length of each decayed twin → its cross-entropy in full precision."""
    return {
        (record.arm["name"], record.seed, model.length): model.ce
        for record in found for model in record.models if model.kind == "decayed"
    }  # fmt: skip


def ratios(found: Sequence[Twin], known: Losses, arm: str, place: str) -> list[float]:
    """KL divergence of the arm's files of one format as a share of plain twins', a mean for each seed.

    As in :func:`benchmarks.dispersion.effects.effect`: a straight line of log KL over cross-entropy through all plain
    twins; twins beyond their range are left out.
    """
    line = _line([(known[_key(twin)], _kl(twin, place)) for twin in found if twin.arm == BASE and _key(twin) in known])
    made: dict[int, list[float]] = {}
    for twin in found:
        if twin.arm == arm and (ce := known.get(_key(twin))) is not None and line.low <= ce <= line.high:
            made.setdefault(twin.seed, []).append(float(np.log(_kl(twin, place)) - line.at(ce)))
    return [float(np.exp(np.mean(each))) for _, each in sorted(made.items())]


def table(found: Sequence[Twin], known: Losses) -> str:
    """Arms over formats: the mean over seeds, and each seed."""
    places = list(dict.fromkeys(f"{made.engine}: {made.format}" for twin in found for made in twin.made))
    few = [place for place in places if not place.endswith("F16")]
    lines = ["| arm | " + " | ".join(few) + " |", "|---" * (len(few) + 1) + "|"]
    for arm in dict.fromkeys(twin.arm for twin in found if twin.arm != BASE):
        cells = []
        for place in few:
            seeds = ratios(found, known, arm, place)
            words = ", ".join(f"{seed:.2f}" for seed in seeds)
            cells.append(f"{np.exp(np.mean(np.log(seeds))):.2f} ({words})" if seeds else "–")
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    most = max((made.kl for twin in found for made in twin.made if made.format == "F16"), default=0.0)
    return "\n".join(lines) + f"\n\n{len(found)} twins; in F16 llama.cpp itself is at most {most:.1g} nats off."


class _Line(msgspec.Struct, frozen=True):
    """log KL over cross-entropy, and the range that it was fitted in."""

    slope: float
    middle: tuple[float, float]
    low: float
    high: float

    def at(self, ce: float) -> float:
        return self.middle[1] + self.slope * (ce - self.middle[0])


def _line(points: Sequence[tuple[float, float]]) -> _Line:
    x: NDArray[np.float64] = np.array([ce for ce, _ in points])
    y: NDArray[np.float64] = np.log([kl for _, kl in points])
    slope = float(np.dot(x - x.mean(), y - y.mean()) / np.square(x - x.mean()).sum())
    return _Line(slope, (float(x.mean()), float(y.mean())), float(x.min()), float(x.max()))


def _key(twin: Twin) -> tuple[str, int, float]:
    return twin.arm, twin.seed, twin.length


def _kl(twin: Twin, place: str) -> float:
    return next(made.kl for made in twin.made if f"{made.engine}: {made.format}" == place)
