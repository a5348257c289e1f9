"""The protocol's decision rule on H1, and how many seeds would narrow an interval enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.dispersion.effects import Effect

JUDGED = ("nearest-4", "nearest-3", "gptq-4", "gptq-3")
LESS = 0.9
"""At most this share of a plain model's damage is what H1 claims."""


def verdict(found: Sequence[Effect]) -> str:
    """What H1 is for one arm: "holds", "refuted" or "undecided", as the protocol says.

    It holds if all four effects are at most :data:`LESS` and their intervals end below 1; it is refuted if all
    intervals begin above :data:`LESS`.
    """
    if all(one.high < 1 and one.ratio <= LESS for one in found):
        return "holds"
    return "refuted" if all(one.low > LESS for one in found) else "undecided"


def seeds_needed(one: Effect) -> int:
    """So many that half an interval is from 1 to :data:`LESS`, if intervals narrow with the root of their number."""
    half = math.log(one.high / one.low) / 2
    return max(2, math.ceil(len(one.seeds) * (half / -math.log(LESS)) ** 2 - 1e-9))


def decisions(made: Mapping[tuple[str, str], Effect], arms: Sequence[str]) -> str:
    """H1 for every arm that has all four effects."""
    lines = ["| arm | H1 | " + " | ".join(f"{change}: seeds apart" for change in JUDGED) + " | seeds to tell 10 % |"]
    lines.append("|---" * (len(JUDGED) + 3) + "|")
    for arm in arms:
        found = [made[arm, change] for change in JUDGED if (arm, change) in made]
        if len(found) == len(JUDGED):
            apart = " | ".join(", ".join(f"{seed:.2f}" for seed in one.seeds) for one in found)
            lines.append(f"| `{arm}` | {verdict(found)} | {apart} | {max(map(seeds_needed, found))} |")
    return "\n".join(lines)
