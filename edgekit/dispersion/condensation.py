"""How condensed a model is: whether its tokens' vectors point the same way, layer by layer.

The measure is that of Chen Liu et al., arXiv:2602.00217, and of the authors' package `embedding-condensation`: the
cosines of all pairs of positions, averaged over sequences of one length, then their mean and their histogram. Beside it
stand what other work holds responsible for fragile models: the spectrum of a layer's states, the kurtosis of states and
weights, and massive activations (Sun et al., arXiv:2402.17762).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.engines.base import F32, Ids
from edgekit.errors import BadWeightsError, TextError

BINS = 128
"""Of a histogram over cosines from -1 to 1."""
_FLOOR = 1e-3
"""A vector is divided by its norm or by this, as in the authors' package."""
_MASSIVE, _TIMES = 100.0, 1000.0
"""An activation is massive above this magnitude and this many times the median one (arXiv:2402.17762)."""
F64 = NDArray[np.float64]


class Layer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer's states; layer 0 is what enters the first block, the last one lies behind the final norm."""

    mean_cosine: float
    """Over all pairs of positions, a position with itself among them."""
    density: tuple[float, ...]
    """Of the cosines, BINS from -1 to 1; their sum times the width of a bin is 1."""
    singular_value_entropy: float
    """Bits: -Σ p log2 p over p = σ / Σσ of a sequence's states, averaged over sequences."""
    first_share: float
    """σ₁² / Σσ²: share of the first singular vector, averaged over sequences."""
    kurtosis: float
    """Excess kurtosis of all entries: 0 for a normal distribution."""
    largest: float
    """Magnitude."""
    massive: int
    """Entries that are massive activations, in all sequences."""
    weight_kurtosis: float | None = None
    """Excess kurtosis of the weights of the block's matrices that gave this layer, mean over matrices; None: none."""


class Condensation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured of one model."""

    schema_version: int = 1
    model: str
    model_sha256: str
    text: str
    """What it read, in words."""
    sequences: int
    length: int
    """Tokens of each."""
    layers: tuple[Layer, ...]
    spearman: float | None
    """Rank correlation ρ of the mean cosine with the layer's number; positive: it condenses with depth. None: all the
    same."""
    kendall: float | None
    """Kendall's τ-b of the same."""


@dataclass
class _Sums:
    """What is gathered of one layer."""

    cosines: F64
    entropy: float = 0.0
    first: float = 0.0
    powers: F64 = field(default_factory=lambda: np.zeros(4))
    entries: int = 0
    largest: float = 0.0
    massive: int = 0

    def add(self, states: F64) -> None:
        """States (tokens, features) of one sequence."""
        unit = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), _FLOOR)
        self.cosines += np.clip(unit @ unit.T, -1, 1)
        entropy, first = spectrum(states)
        self.entropy += entropy
        self.first += first
        self.powers += [float((states**power).sum()) for power in (1, 2, 3, 4)]
        self.entries += states.size
        sizes = np.abs(states)
        self.largest = max(self.largest, float(sizes.max()))
        self.massive += int((sizes > max(_MASSIVE, _TIMES * float(np.median(sizes)))).sum())

    def layer(self, sequences: int) -> Layer:
        cosines = np.clip(self.cosines / sequences, -1, 1)
        density, _ = np.histogram(cosines, bins=BINS, range=(-1, 1), density=True)
        return Layer(
            mean_cosine=float(cosines.mean()), density=tuple(map(float, density)),
            singular_value_entropy=self.entropy / sequences, first_share=self.first / sequences,
            kurtosis=_kurtosis(self.powers / self.entries), largest=self.largest, massive=self.massive,
        )  # fmt: skip


def spectrum(states: F64) -> tuple[float, float]:
    """Entropy of the singular values' shares in bits, and the first one's share of the squares; 0 of nothing."""
    values = np.linalg.svd(states, compute_uv=False)
    if not values.any():
        return 0.0, 0.0
    shares = values[values > 0] / values.sum()
    return float(-(shares * np.log2(shares)).sum()), float(values[0] ** 2 / (values**2).sum())


def _kurtosis(moments: F64) -> float:
    """Excess kurtosis from the raw moments 1 to 4; 0 where nothing varies."""
    first, second, third, fourth = moments
    variance = second - first**2
    if variance <= 1e-12 * max(second, 1e-300):
        return 0.0
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return float(central / variance**2 - 3)


def weight_kurtosis(weights: F32) -> float:
    """Excess kurtosis of a matrix's entries."""
    whole = weights.astype(np.float64)
    return _kurtosis(np.array([float((whole**power).mean()) for power in (1, 2, 3, 4)]))


def measured(
    states: Callable[[Ids], Sequence[F32]], sequences: Sequence[Ids], progress: Callable[[int, int], None]
) -> tuple[Layer, ...]:
    """Every layer's figures, those of weights left open.

    Args:
        states: ids (T,) → (T, features) of every layer.
        sequences: of one length, at least two tokens.
        progress: called after every sequence.

    Raises:
        TextError: there is no sequence, they differ in length, or they are shorter than two tokens.
        BadWeightsError: a state is NaN or infinite; names the layer.
    """
    lengths = {len(ids) for ids in sequences}
    if len(lengths) != 1 or (length := lengths.pop()) < 2:
        raise TextError("cosines are averaged by position", expected="sequences of one length, two tokens or more")
    sums: list[_Sums] = []
    for done, ids in enumerate(sequences, 1):
        given = states(ids)
        sums = sums or [_Sums(np.zeros((length, length))) for _ in given]
        for number, (place, rows) in enumerate(zip(sums, given, strict=True)):
            if not np.isfinite(rows).all():
                raise BadWeightsError(
                    f"the states of layer {number} hold NaN or infinity",
                    expected="finite states",
                    remedy="measure another text, or an earlier checkpoint",
                )
            place.add(rows.astype(np.float64))
        progress(done, len(sequences))
    return tuple(place.layer(len(sequences)) for place in sums)


def trend(means: Iterable[float]) -> tuple[float | None, float | None]:
    """Spearman's ρ and Kendall's τ-b of the layers' mean cosines with depth; None where they are all the same."""
    from scipy import stats

    values = np.array(list(means))
    if len(values) < 2 or np.all(values == values[0]):
        return None, None
    depth = np.arange(len(values))
    return float(stats.spearmanr(depth, values).statistic), float(stats.kendalltau(depth, values).statistic)
