from __future__ import annotations

import numpy as np
import pytest
from edgekit.coherence.distribution import coarse_kl, describe, top_tokens
from edgekit.coherence.metrics import kl_full, kl_topk, truncation_error
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coherence_engine import f32, table

ROUNDING = 1e-5


def pair(vocab_size: int, seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    p = table(vocab_size, seed)
    return p, (p + noise * table(vocab_size, seed + 1, 1.0)).astype(np.float32)


def naive_kl(p_logits: np.ndarray, q_logits: np.ndarray) -> np.ndarray:
    p, q = (np.exp(x.astype(np.longdouble)) for x in (p_logits, q_logits))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    return np.asarray((p * np.log(p / q)).sum(axis=1), np.float64)


@pytest.mark.parametrize("noise", [0.01, 0.3, 2.0])
def test_full_kl_is_the_textbook_sum(noise: float) -> None:
    p, q = pair(60, 3, noise)
    np.testing.assert_allclose(kl_full(p, q), naive_kl(p, q), rtol=1e-9, atol=1e-12)


def test_kl_of_two_coins_by_hand() -> None:
    p, q = np.log(f32([[0.5, 0.5]])), np.log(f32([[0.25, 0.75]]))
    by_hand = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert kl_full(p, q)[0] == pytest.approx(by_hand, abs=1e-7)
    assert kl_topk(p, q, 1)[0] == pytest.approx(by_hand, abs=1e-6)


def test_kl_with_a_tail_by_hand() -> None:
    p, q = np.log(f32([[0.6, 0.2, 0.15, 0.05]])), np.log(f32([[0.4, 0.3, 0.05, 0.25]]))
    by_hand = 0.6 * np.log(0.6 / 0.4) + 0.2 * np.log(0.2 / 0.3) + 0.2 * np.log(0.2 / 0.3)
    assert kl_topk(p, q, 2)[0] == pytest.approx(by_hand, abs=1e-6)
    hidden = 0.15 * np.log(0.15 / 0.05) + 0.05 * np.log(0.05 / 0.25) - 0.2 * np.log(0.2 / 0.3)
    assert truncation_error(p, q, 2)[0] == pytest.approx(hidden, abs=1e-6)


@given(seed=st.integers(0, 10_000), vocab_size=st.integers(2, 80), noise=st.floats(0.0, 5.0), k=st.integers(1, 90))
@settings(max_examples=40, deadline=None)
def test_topk_kl_is_a_lower_bound_that_rises_with_k(seed: int, vocab_size: int, noise: float, k: int) -> None:
    p, q = pair(vocab_size, seed, noise)
    coarse, finer = kl_topk(p, q, k), kl_topk(p, q, k + 1)
    assert (coarse <= finer + ROUNDING).all()
    assert (truncation_error(p, q, k) >= -ROUNDING).all()
    np.testing.assert_allclose(kl_topk(p, q, vocab_size), kl_full(p, q), atol=ROUNDING)


def test_truncation_error_shrinks_with_the_tail() -> None:
    p, q = pair(500, 5, 0.5)
    errors = [truncation_error(p, q, k).mean() for k in (1, 8, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05, "the case must have something to hide"


@pytest.mark.parametrize("k", [1, 8, 64])
def test_truncation_error_is_tail_mass_times_divergence_inside_the_tail(k: int) -> None:
    p, q = pair(100, 5, 0.5)
    for row in range(20):
        rest = np.argsort(-p[row], kind="stable")[k:]
        mass = np.exp(p[row, rest].astype(float)).sum() / np.exp(p[row].astype(float)).sum()
        inside = naive_kl(p[row, rest][None], q[row, rest][None])[0]
        assert truncation_error(p[row][None], q[row][None], k)[0] == pytest.approx(mass * inside, abs=1e-6)


def test_top_tokens_of_ties_are_the_lowest_ids() -> None:
    logits = f32([[1, 2, 2, 1, 1], [0, 0, 0, 0, 0]])
    assert top_tokens(logits, 3).tolist() == [[1, 2, 0], [0, 1, 2]]


@given(seed=st.integers(0, 1000), vocab_size=st.integers(2, 50), k=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_top_tokens_are_those_of_a_full_sort(seed: int, vocab_size: int, k: int) -> None:
    logits = np.random.default_rng(seed).integers(0, 9, (4, vocab_size)).astype(np.float32)
    assert (top_tokens(logits, k) == np.argsort(-logits, axis=1, kind="stable")[:, :k]).all()


def test_a_tail_far_below_float64_epsilon_is_kept() -> None:
    p = f32([[0, -50, -60]])
    said = describe(p, np.zeros(1, np.int64), top_tokens(p, 1))
    assert said.tail_logp[0] == pytest.approx(np.log(np.exp(-50.0) + np.exp(-60.0)), rel=1e-6)


@pytest.mark.parametrize("size", [3e4, 3e38])
def test_huge_finite_logits_give_finite_figures(size: float) -> None:
    p, q = f32([[size, -size, 0.0]]), f32([[-size, size, 0.0]])
    for k in (1, 2, 3):
        kl = kl_topk(p, q, k)
        assert np.isfinite(kl).all()
        assert kl[0] > 600


def test_many_rows_are_described_like_few(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = pair(40, 9, 0.4)
    whole = kl_topk(p, q, 8)
    monkeypatch.setattr("edgekit.coherence.distribution._CHUNK_ELEMENTS", 120)
    assert (kl_topk(p, q, 8) == whole).all()


def test_identical_logits_diverge_by_exactly_zero() -> None:
    p, _ = pair(300, 2, 0.0)
    top = top_tokens(p, 10)
    zeros = np.zeros(len(p), np.int64)
    assert (coarse_kl(describe(p, zeros, top), describe(p, zeros, top)) == 0).all()
