"""Twins of one seed and length, which have seen the same text in the same order: who is the better model afterwards?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.dispersion.arms import ARMS
from benchmarks.dispersion.effects import BASE
from benchmarks.dispersion.measure import Measured
from benchmarks.dispersion.run import Record

CHANGES = ("", "nearest-4", "nearest-3", "nearest-2", "gptq-4", "gptq-3", "gptq-2")
"""Full precision first."""


def differences(found: Sequence[Record], arm: str, change: str) -> dict[int, float]:
    """Seed → cross-entropy of the arm's decayed models minus that of their plain twins, both after `change`, in nats.

    A mean over the lengths, which share their beginnings: only seeds are independent.
    """
    plain, pairs = _losses(found, BASE, change), dict[int, list[float]]()
    for (seed, length), loss in sorted(_losses(found, arm, change).items()):
        if (seed, length) in plain:
            pairs.setdefault(seed, []).append(loss - plain[seed, length])
    return {seed: float(np.mean(each)) for seed, each in pairs.items()}


def table(found: Sequence[Record]) -> str:
    """Arms over changes: mean difference in nats, and each seed's."""
    lines = ["| arm | " + " | ".join(change or "full precision" for change in CHANGES) + " |"]
    lines.append("|---" * (len(CHANGES) + 1) + "|")
    for arm in ARMS:
        every = [list(differences(found, arm, change).values()) for change in CHANGES]
        if arm != BASE and every[0]:
            cells = (f"{np.mean(each):+.3f} ({', '.join(f'{one:+.3f}' for one in each)})" for each in every)
            lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _losses(found: Sequence[Record], arm: str, change: str) -> dict[tuple[int, float], float]:
    return {
        (record.seed, model.length): model.ce + _rise(model, change)
        for record in found if record.arm["name"] == arm
        for model in record.models if model.kind == "decayed"
    }  # fmt: skip


def _rise(model: Measured, change: str) -> float:
    return float(np.mean([damage.ce for damage in model.damages if damage.change == change])) if change else 0.0
