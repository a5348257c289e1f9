"""The protocol's decision rule on H1, and how many seeds would narrow an interval enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.dispersion.effects import Effect

JUDGED = ("nearest-4", "nearest-3", "gptq-4", "gptq-3")
LESS = 0.9
"""At most this share of a plain model's damage is what H1 claims."""
_NORMAL = 1.96
"""Standard deviations of half a 95 % interval."""


def verdict(found: Sequence[Effect]) -> str:
    """What H1 is for one arm: "holds", "refuted" or "undecided", as the protocol says.

    It holds if all four effects are at most :data:`LESS` and their intervals end below 1; it is refuted if all
    intervals begin above :data:`LESS`. An interval of one seed is of the text alone and decides nothing.
    """
    if any(len(one.seeds) < 2 for one in found):
        return "undecided"
    if all(one.high < 1 and one.ratio <= LESS for one in found):
        return "holds"
    return "refuted" if all(one.low > LESS for one in found) else "undecided"


def seeds_needed(one: Effect) -> int:
    """So many that half of the 95 % interval of their mean reaches from 1 to :data:`LESS`; 0 where one alone was run.

    From the standard deviation of the seeds' logarithms, taken as known: with few seeds a guess. What the text adds to
    an interval does not shrink with seeds and is left out.
    """
    if len(one.seeds) < 2:
        return 0
    half = _NORMAL * float(np.std(np.log(one.seeds), ddof=1))
    return max(2, math.ceil((half / -math.log(LESS)) ** 2 - 1e-9))


def decisions(made: Mapping[tuple[str, str], Effect], arms: Sequence[str]) -> str:
    """H1 for every arm that has all four effects."""
    lines = ["| arm | H1 | " + " | ".join(f"{change}: seeds apart" for change in JUDGED) + " | seeds to tell 10 % |"]
    lines.append("|---" * (len(JUDGED) + 3) + "|")
    for arm in arms:
        found = [made[arm, change] for change in JUDGED if (arm, change) in made]
        if len(found) == len(JUDGED):
            apart = " | ".join(", ".join(f"{seed:.2f}" for seed in one.seeds) for one in found)
            lines.append(f"| `{arm}` | {verdict(found)} | {apart} | {max(map(seeds_needed, found)) or '–'} |")
    return "\n".join(lines)
