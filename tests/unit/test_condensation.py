"""What is said of a layer's states, against the definitions written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

stats = pytest.importorskip("scipy.stats")

from edgekit.dispersion.condensation import (  # noqa: E402
    BINS,
    Condensation,
    Layer,
    measured,
    spectrum,
    trend,
    weight_kurtosis,
)
from edgekit.errors import BadWeightsError, TextError  # noqa: E402
from edgekit.report.condensation import render  # noqa: E402

IDS = [np.arange(6, dtype=np.int64), np.arange(6, 12, dtype=np.int64)]


def given_states(*layers: Any) -> Any:
    """A model that says of sequence i what layers[·][i] holds."""
    return lambda ids: [np.asarray(layer[int(ids[0]) // 6], np.float32) for layer in layers]


def figures(*layers: Any, sequences: Sequence[Any] = IDS) -> tuple[Layer, ...]:
    return measured(given_states(*layers), sequences, lambda *_: None)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_every_figure_is_its_definition(seed: int) -> None:
    states = np.random.default_rng(seed).normal(size=(2, 6, 5)).astype(np.float32) ** 3
    (layer,) = figures(states)
    cosines = np.zeros((6, 6))
    for rows in states.astype(np.float64):
        for i in range(6):
            for j in range(6):
                cosines[i, j] += rows[i] @ rows[j] / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])) / 2
    assert layer.mean_cosine == pytest.approx(cosines.mean(), abs=1e-9)
    assert sum(layer.density) * 2 / BINS == pytest.approx(1)
    middles = (np.arange(BINS) + 0.5) * 2 / BINS - 1
    assert np.average(middles, weights=layer.density) == pytest.approx(cosines.mean(), abs=2 / BINS)
    assert layer.kurtosis == pytest.approx(stats.kurtosis(states.astype(np.float64), axis=None), rel=1e-6)
    assert layer.largest == pytest.approx(np.abs(states).max())
    entropies = [stats.entropy(np.linalg.svd(rows.astype(np.float64))[1], base=2) for rows in states]
    assert layer.singular_value_entropy == pytest.approx(np.mean(entropies))


def test_one_direction_and_right_angles() -> None:
    same, apart = np.ones((2, 6, 8)), np.stack([np.eye(6, 8)] * 2)
    one, other = figures(same, apart)
    assert one.mean_cosine == pytest.approx(1)
    assert other.mean_cosine == pytest.approx(1 / 6)
    assert (one.singular_value_entropy, one.first_share) == pytest.approx((0, 1), abs=1e-6)
    assert (other.singular_value_entropy, other.first_share) == pytest.approx((math.log2(6), 1 / 6))


def test_states_of_nothing_are_not_divided_by_nothing() -> None:
    (layer,) = figures(np.zeros((2, 6, 4)))
    assert (layer.mean_cosine, layer.kurtosis, layer.massive) == (0, 0, 0)
    assert spectrum(np.zeros((3, 2))) == (0, 0)


def test_massive_activations_are_those_of_the_paper() -> None:
    states = np.full((2, 6, 50), 0.2)
    states[0, 0, 7] = 250.0  # above 100, and above 1000 times the median of 0.2
    states[0, 1, 7] = 150.0  # above 100 alone
    (layer,) = figures(states)
    assert (layer.massive, layer.largest) == (1, 250.0)
    (small,) = figures(states / 10)
    assert small.massive == 0


@given(values=st.lists(st.integers(0, 5), min_size=2, max_size=9))
@settings(max_examples=30, deadline=None)
def test_the_trend_with_depth(values: list[int]) -> None:
    rho, tau = trend(values)
    if len(set(values)) == 1:
        assert (rho, tau) == (None, None)
        return
    assert rho == pytest.approx(stats.spearmanr(range(len(values)), values).statistic)
    assert tau == pytest.approx(stats.kendalltau(range(len(values)), values).statistic)
    assert trend(sorted(set(values)))[0] == pytest.approx(1) or len(set(values)) == 1


def test_the_kurtosis_of_weights() -> None:
    weights = np.random.default_rng(0).standard_t(5, size=(40, 60)).astype(np.float32)
    assert weight_kurtosis(weights) == pytest.approx(stats.kurtosis(weights.astype(np.float64), axis=None), rel=1e-6)
    assert weight_kurtosis(np.full((3, 4), 0.1, np.float32)) == 0


def test_states_that_are_no_numbers_name_the_layer() -> None:
    fine, broken = np.ones((2, 6, 4)), np.ones((2, 6, 4))
    broken[1, 2, 3] = np.inf
    with pytest.raises(BadWeightsError, match="layer 1 hold NaN or infinity"):
        figures(fine, broken)


@pytest.mark.parametrize("sequences", [[], [np.arange(1)], [np.arange(6), np.arange(5)]])
def test_text_that_has_no_positions_to_average_is_refused(sequences: list[Any]) -> None:
    with pytest.raises(TextError):
        figures(np.ones((2, 6, 4)), sequences=sequences)


def test_the_page_shows_every_layer_and_no_stranger_gets_into_it() -> None:
    layers = figures(np.random.default_rng(0).normal(size=(2, 6, 4)), np.ones((2, 6, 4)))
    found = Condensation(
        model="<script>x", model_sha256="0" * 64, text="a text file", sequences=2, length=6, layers=layers,
        spearman=1.0, kendall=1.0,
    )  # fmt: skip
    page = render([found, found])
    assert page.count("<svg") == 2
    assert page.count("<tr><td>") == 4
    assert "<script>" not in page
    assert render([found, found]) == page
