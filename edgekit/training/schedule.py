"""Learning rates over a training, as shares of the full ones."""

from __future__ import annotations

import math

from edgekit.training.recipe import EndToEnd


def rate(end: EndToEnd, step: int, steps: int) -> float:
    """Share of the full rates in optimizer step `step`, from 0, of `steps`.

    Both schedules rise linearly over the first `warmup` of the steps. "cosine" then falls to zero along half a cosine;
    "wsd" (warm-up, stable, decay: Hu et al., "MiniCPM", arXiv:2404.06395) stays, and falls linearly to zero over the
    last `decay` of the steps.
    """
    rising = round(end.warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    if end.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
    falling = max(1, round(end.decay * steps))
    return min(1.0, (steps - step) / falling)
