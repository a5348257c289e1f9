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


def differences(found: Sequence[Record], arm: str, change: str) -> list[float]:
    """Cross-entropy of the arm's decayed models minus that of their plain twins, both after `change`: of each pair."""
    plain = _losses(found, BASE, change)
    return [loss - plain[pair] for pair, loss in _losses(found, arm, change).items() if pair in plain]


def table(found: Sequence[Record]) -> str:
    """Arms over changes: mean difference in nats, and the pair where it is smallest and largest."""
    lines = ["| arm | pairs | " + " | ".join(change or "full precision" for change in CHANGES) + " |"]
    lines.append("|---" * (len(CHANGES) + 2) + "|")
    for arm in ARMS:
        every = [differences(found, arm, change) for change in CHANGES]
        if arm != BASE and every[0]:
            cells = (f"{np.mean(each):+.3f} ({min(each):+.3f} to {max(each):+.3f})" for each in every)
            lines.append(f"| `{arm}` | {len(every[0])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _losses(found: Sequence[Record], arm: str, change: str) -> dict[tuple[int, float], float]:
    return {
        (record.seed, model.length): model.ce + _rise(model, change)
        for record in found if record.arm["name"] == arm
        for model in record.models if model.kind == "decayed"
    }  # fmt: skip


def _rise(model: Measured, change: str) -> float:
    return float(np.mean([damage.ce for damage in model.damages if damage.change == change])) if change else 0.0
