"""What an artefact's files really hold, beside what the build was asked for."""

from __future__ import annotations

from collections import Counter

from edgekit.bundle.manifest import Artefact


def number_formats(artefact: Artefact) -> tuple[str, ...]:
    """Number formats of the matrices but the embedding, the one with most bytes first."""
    weights: Counter[str] = Counter()
    for entry in artefact.plan:
        if entry.role != "embedding" and len(entry.shape) > 1:
            weights[entry.grid] += entry.bytes
    return tuple(grid for grid, _ in weights.most_common())
