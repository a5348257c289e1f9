"""What two texts have in common: passages, which an honest evaluation forbids, or words, which calibration needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from edgekit.engines.base import Ids

WINDOW = 16
"""Words of a passage: longer than what two texts of one language have in common by chance."""
LIKE = 0.25
"""Share of known tokens below which a text is said to be of another language or kind; see docs/quantization.md."""
LEAST = 1024
"""Tokens of each text from which that share says something."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_EAST = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_EAST}]|[^\W_{_EAST}]+")


def shared_passages(judged: str, other: str, most: int) -> float:
    """Share of the first `most` words of `judged` whose passage stands in `other`, too, 0 to 1.

    A passage is a run of :data:`WINDOW` words; case, punctuation and line ends do not count, and every letter of a
    writing without spaces is a word. Takes about a second for 4 MB.
    """
    mine, others = _passages(judged, most), _passages(other)
    return float(np.isin(mine, others).mean()) if len(mine) and len(others) else 0.0


def _passages(text: str, most: int | None = None) -> NDArray[np.uint64]:
    """Hashes of all runs of WINDOW words, within this process."""
    found = islice(_WORD.finditer(text.casefold()), most)
    words = np.fromiter((hash(match[0]) for match in found), np.int64).view(np.uint64)
    count = max(0, len(words) - WINDOW + 1)
    passages = np.zeros(count, np.uint64)
    for place in range(WINDOW if count else 0):
        passages = passages * _FACTOR + words[place : place + count]
    return passages


def known_tokens(calibration: Sequence[Ids], evaluation: Sequence[Ids]) -> float | None:
    """Share of the calibration's tokens that occur in the evaluation text; None when there is too little of either."""
    mine, others = np.concatenate(calibration), np.concatenate(evaluation)
    if min(len(mine), len(others)) < LEAST:
        return None
    return float(np.isin(mine, others).mean())
