"""Drawing tokens from weights. Needs numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def draw(logits: F32 | F64, random: np.random.Generator, temperature: float = 1.0, top_p: float = 1.0) -> int:
    """One token from logits (V,), of which the largest is finite.

    Softmax of logits / temperature (above 0); with top_p < 1 cut to the nucleus, the fewest most probable tokens that
    have that mass (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020).
    """
    with np.errstate(over="ignore"):
        weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.argsort(-weights, kind="stable") if top_p < 1 else np.arange(len(weights))
    mass = np.cumsum(weights[order])
    if top_p < 1:
        mass = mass[: int(np.searchsorted(mass, top_p * mass[-1])) + 1]
    return int(order[draw_indices(mass, random.random(1))[0]])


def draw_indices(mass: F64, uniform: F64) -> NDArray[np.intp]:
    """Indices (m,) with replacement from cumulative weights (V,), by uniform numbers (m,) in [0, 1).

    An index of weight zero is never drawn.
    """
    # A uniform number is below 1, but its product with the sum may round up to the sum: stay inside.
    last = np.searchsorted(mass, mass[-1])
    indices: NDArray[np.intp] = np.minimum(np.searchsorted(mass, uniform * mass[-1], side="right"), last)
    return indices
