from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coherence_engine import f32, table

from edgekit.coherence.distribution import Positions, coarse_kl, describe, draw_tail, tail_kl, top_tokens
from edgekit.coherence.metrics import estimate_error, kl_full, kl_topk

ROUNDING = 1e-5


def pair(vocab_size: int, seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    p = table(vocab_size, seed)
    return p, (p + noise * table(vocab_size, seed + 1, 1.0)).astype(np.float32)


def sides(p: np.ndarray, q: np.ndarray, k: int, m: int, seed: int = 0) -> tuple[Positions, Positions]:
    """Both distributions as a reference of p and a comparison with q describe them."""
    top, after = top_tokens(p, k), np.zeros(len(p), np.int64)
    drawn = draw_tail(p, top, m, np.random.default_rng(seed))
    return describe(p, after, top, drawn), describe(q, after, top, drawn)


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
    assert kl_full(p, q)[0] - kl_topk(p, q, 2)[0] == pytest.approx(hidden, abs=1e-6)
    p_said, q_said = sides(p, q, 2, 7)
    r = np.array([0.05 / 0.3 / (0.15 / 0.2) if i == 2 else 0.25 / 0.3 / (0.05 / 0.2) for i in p_said.drawn_ids[0]])
    assert set(p_said.drawn_ids[0].tolist()) == {2, 3}
    assert tail_kl(p_said, q_said)[0] == pytest.approx(0.2 * (r - 1 - np.log(r)).mean(), rel=1e-5)


@given(seed=st.integers(0, 10_000), vocab_size=st.integers(2, 80), noise=st.floats(0.0, 5.0), k=st.integers(1, 90))
@settings(max_examples=40, deadline=None)
def test_topk_kl_is_a_lower_bound_that_rises_with_k(seed: int, vocab_size: int, noise: float, k: int) -> None:
    p, q = pair(vocab_size, seed, noise)
    coarse, finer = kl_topk(p, q, k), kl_topk(p, q, k + 1)
    assert (coarse <= finer + ROUNDING).all()
    assert (coarse <= kl_full(p, q) + ROUNDING).all()
    np.testing.assert_allclose(kl_topk(p, q, vocab_size), kl_full(p, q), atol=ROUNDING)


def test_what_the_coarse_bound_hides_shrinks_with_the_tail() -> None:
    p, q = pair(500, 5, 0.5)
    hidden = [(kl_full(p, q) - kl_topk(p, q, k)).mean() for k in (1, 8, 64, 256)]
    assert hidden == sorted(hidden, reverse=True)
    assert hidden[0] > 0.05, "the case must have something to hide"


@pytest.mark.parametrize("k", [1, 8, 64])
def test_what_is_hidden_is_tail_mass_times_divergence_inside_the_tail(k: int) -> None:
    p, q = pair(100, 5, 0.5)
    hidden = kl_full(p, q) - kl_topk(p, q, k)
    for row in range(20):
        rest = np.argsort(-p[row], kind="stable")[k:]
        mass = np.exp(p[row, rest].astype(float)).sum() / np.exp(p[row].astype(float)).sum()
        inside = naive_kl(p[row, rest][None], q[row, rest][None])[0]
        assert hidden[row] == pytest.approx(mass * inside, abs=1e-6)


@pytest.mark.parametrize(("k", "noise"), [(1, 0.1), (8, 0.5), (8, 1.0), (32, 1.0)])
def test_the_estimate_has_no_bias(k: int, noise: float) -> None:
    """Row by row and over all rows, the mean of many estimates is the exact divergence, within their standard error."""
    p, q = pair(200, 5, noise)
    p, q, repeats = p[:10], q[:10], 600
    many_p, many_q = np.repeat(p, repeats, axis=0), np.repeat(q, repeats, axis=0)
    errors = estimate_error(sides(many_p, many_q, k, 16)[0], many_p, many_q).reshape(10, repeats)
    standard_error = errors.std(axis=1, ddof=1) / np.sqrt(repeats)
    assert (np.abs(errors.mean(axis=1)) < 4.5 * standard_error + ROUNDING).all()
    assert abs(errors.mean()) < 4 * np.sqrt((standard_error**2).sum()) / 10 + ROUNDING
    hidden = (kl_full(p, q) - kl_topk(p, q, k)).mean()
    assert hidden > 40 * np.sqrt((standard_error**2).sum()) / 10, (
        "the test must see a bias of a tenth of what is hidden"
    )


def test_the_spread_of_the_estimate_falls_with_the_root_of_the_draws() -> None:
    p, q = (np.repeat(x[:1], 2000, axis=0) for x in pair(200, 5, 0.5))
    few, many = (estimate_error(sides(p, q, 8, m)[0], p, q).std() for m in (4, 64))
    assert few / many == pytest.approx(4.0, rel=0.15)


@given(
    seed=st.integers(0, 10_000),
    vocab_size=st.integers(2, 60),
    noise=st.floats(0.0, 300.0),
    k=st.integers(1, 70),
    m=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_the_estimate_is_finite_and_never_negative(seed: int, vocab_size: int, noise: float, k: int, m: int) -> None:
    p, q = pair(vocab_size, seed, noise)
    p_said, q_said = sides(p, q, k, m, seed)
    hidden = tail_kl(p_said, q_said)
    assert (np.isfinite(hidden) & (hidden >= 0)).all()
    if m == 0 or k >= vocab_size:
        assert p_said.drawn_ids.shape == (vocab_size, 0)
        assert (hidden == 0).all()
        assert (coarse_kl(p_said, q_said) == kl_topk(p, q, k)).all()
    if k >= vocab_size:
        np.testing.assert_allclose(estimate_error(p_said, p, q), 0, atol=ROUNDING * (1 + noise))


def test_draws_are_of_the_tail_and_follow_its_distribution() -> None:
    p = np.log(f32([[0.5, 0.05, 0.2, 0.1, 0.15]]))
    drawn = draw_tail(p, top_tokens(p, 2), 20_000, np.random.default_rng(0))[0]
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(shares, [0, 0.05 / 0.3, 0, 0.1 / 0.3, 0.15 / 0.3], atol=0.015)


def test_a_tail_that_underflows_is_drawn_from_and_adds_nothing() -> None:
    p, q = f32([[0, -2000, -2001, -9000]]), f32([[0, -2001, -2000, -5000]])
    p_said, q_said = sides(p, q, 1, 500)
    assert np.bincount(p_said.drawn_ids[0], minlength=4)[1:] / 500 == pytest.approx([0.731, 0.269, 0], abs=0.06)
    assert p_said.tail_logp[0] == pytest.approx(-2000 + np.log(1 + np.exp(-1)), abs=1e-3)
    assert tail_kl(p_said, q_said)[0] == 0.0


@pytest.mark.parametrize("gap", [800.0, 1e29])
def test_a_tail_that_the_engine_rules_out_costs_a_finite_price(gap: float) -> None:
    """Half of p's tail has no mass in q, and q's tail as a whole underflows when the gap is wide."""
    p, q = f32([[1, 0, 0]]), f32([[gap, 0, -gap]])
    p_said, q_said = sides(p, q, 1, 400)
    mass = 2 / (2 + np.e)
    assert tail_kl(p_said, q_said)[0] == pytest.approx(mass * (np.log(0.5) + 0.5 * gap), rel=0.15)


def test_a_draw_that_the_full_precision_model_all_but_rules_out_is_bounded() -> None:
    """As from a stranger's file: p's distribution does not draw such a token."""
    p, q = f32([[1, 0, -3e38]]), f32([[1, 0, 0]])
    drawn = np.array([[2]], np.int32)
    said = [describe(x, np.zeros(1, np.int64), top_tokens(p, 1), drawn) for x in (p, q)]
    assert np.isfinite(tail_kl(*said)).all()


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
    said, _ = sides(p, p, 1, 0)
    assert said.tail_logp[0] == pytest.approx(np.log(np.exp(-50.0) + np.exp(-60.0)), rel=1e-6)


@pytest.mark.parametrize("size", [3e4, 3e38])
def test_huge_finite_logits_give_finite_figures(size: float) -> None:
    p, q = f32([[size, -size, 0.0]]), f32([[-size, size, 0.0]])
    for k in (1, 2, 3):
        kl = kl_topk(p, q, k)
        assert np.isfinite(kl).all()
        assert kl[0] > 600
        assert np.isfinite(tail_kl(*sides(p, q, k, 3))).all()


def test_many_rows_are_described_like_few(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = pair(40, 9, 0.4)
    whole = kl_topk(p, q, 8)
    monkeypatch.setattr("edgekit.coherence.distribution._CHUNK_ELEMENTS", 120)
    assert (kl_topk(p, q, 8) == whole).all()


def test_identical_logits_diverge_by_exactly_zero() -> None:
    p, _ = pair(300, 2, 0.0)
    said, again = sides(p, p.copy(), 10, 8)
    assert (coarse_kl(said, again) == 0).all()
    assert (tail_kl(said, again) == 0).all()
