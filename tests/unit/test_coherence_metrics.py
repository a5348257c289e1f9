from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coherence_engine import ORIGIN, Bigram, sealed, table, text

from edgekit.coherence.metrics import Coherence, estimate_error, evaluate, kl_full, kl_topk
from edgekit.coherence.reference import seal
from edgekit.errors import OptionError, ParityError

V = 64


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_name_sequence_and_position(bad: float) -> None:
    reference = sealed(Bigram(table(V)), n=3, length=10)
    broken = table(V)
    last = reference.sequences.lists()[2]
    token = next(t for t in last.tolist() if all(t not in ids for ids in reference.sequences.lists()[:2]))
    broken[token, 5] = bad
    with pytest.raises(ParityError, match=f"sequence 2, position {last.tolist().index(token)}"):
        evaluate(Bigram(broken), reference)


def test_logits_that_are_no_numbers_while_generating_name_the_prompt() -> None:
    class Broken(Bigram):
        def start(self, ids: np.ndarray) -> np.ndarray:
            return np.full(V, np.nan, np.float32) if ids[-1] == 3 else super().start(ids)

    with pytest.raises(ParityError, match="prompt 3, position 0"):
        evaluate(Broken(table(V)), sealed(Bigram(table(V))))


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ParityError, match=r"vocabulary of 65 tokens; expected 64"):
        evaluate(Bigram(table(V + 1)), sealed(Bigram(table(V))))


def test_logits_of_a_wrong_shape_are_refused() -> None:
    engine = Bigram(table(V))
    engine.table = engine.table[:, :-1]
    with pytest.raises(ParityError, match="shape"):
        evaluate(engine, sealed(Bigram(table(V))))


def test_a_context_that_is_too_short_is_refused() -> None:
    with pytest.raises(OptionError, match="does not fit into the context"):
        evaluate(Bigram(table(V), max_context=20), sealed(Bigram(table(V))))


def test_an_identical_engine_is_perfect() -> None:
    found = evaluate(Bigram(table(V)), sealed(Bigram(table(V))))
    assert found.kl_mean == found.kl_max == found.delta_p_rms == 0.0
    assert found.same_top == found.ppl_ratio == 1.0
    assert found.ppl_ratio_se == 0.0
    assert found.entropy_engine == found.entropy_reference
    assert found.generation is not None
    assert found.generation.identical_share == 1.0
    assert found.generation.first_divergent_median is None
    assert found.generation.seq_rep_4_rise == found.generation.loop_rate_rise == 0.0


def test_a_known_perturbation_gives_the_figures_worked_out_directly() -> None:
    exact, worse = table(V), table(V) + table(V, seed=9, sharpness=0.4)
    reference = sealed(Bigram(exact), k=V)
    assert reference.meta.draws == 0
    found = evaluate(Bigram(worse), reference)
    ids = np.concatenate([s[:-1] for s in reference.sequences.lists()])
    after = np.concatenate([s[1:] for s in reference.sequences.lists()])
    logp, logq = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (exact.astype(float), worse.astype(float)))
    kl = kl_full(exact, worse)[ids]
    d = logp[ids, after] - logq[ids, after]
    assert found.kl_mean == found.kl_mean_coarse == pytest.approx(kl.mean(), abs=1e-6)
    assert found.kl_median == pytest.approx(np.median(kl), abs=1e-6)
    assert found.kl_p999 == pytest.approx(np.quantile(kl, 0.999), abs=1e-6)
    assert found.same_top == pytest.approx((exact.argmax(1) == worse.argmax(1))[ids].mean())
    assert found.delta_p_rms == pytest.approx(
        np.sqrt(((np.exp(logq) - np.exp(logp))[ids, after] ** 2).mean()), rel=1e-5
    )
    assert found.ppl_ratio == pytest.approx(math.exp(d.mean()), rel=1e-5)
    assert found.ppl_engine == pytest.approx(found.ppl_reference * found.ppl_ratio, rel=1e-9)
    assert found.ppl_reference == pytest.approx(math.exp(-logp[ids, after].mean()), rel=1e-5)
    assert found.entropy_engine == pytest.approx(-(np.exp(logq) * logq).sum(axis=1)[ids].mean(), rel=1e-5)


@pytest.mark.parametrize("k", [1, 16])
def test_mean_kl_over_the_seeds_of_the_draws_is_exact_and_the_coarse_mean_is_below(k: int) -> None:
    exact, worse = table(V), table(V) + table(V, seed=9, sharpness=0.6)
    found, lists = [], text(V)
    for seed in range(25):
        origin = msgspec.structs.replace(ORIGIN, seed=seed)
        one = seal(Bigram(exact), lists, [], origin=origin, k=k, draws=8)
        found.append(evaluate(Bigram(worse), one))
    full = kl_full(exact, worse)[np.concatenate([ids[:-1] for ids in lists])].mean()
    means = np.array([f.kl_mean for f in found])
    standard_error = means.std(ddof=1) / math.sqrt(len(means))
    assert means.mean() == pytest.approx(full, abs=3.5 * standard_error + 1e-6)
    assert len({f.kl_mean_coarse for f in found}) == 1
    assert found[0].kl_mean_coarse < full - 10 * standard_error, "the case must have something to hide"
    assert (means >= found[0].kl_mean_coarse).all()


def test_without_draws_mean_kl_is_the_coarse_bound() -> None:
    exact, worse, lists = table(V), table(V) + table(V, 9, 0.6), text(V)
    found = evaluate(Bigram(worse), seal(Bigram(exact), lists, [], origin=ORIGIN, k=4, draws=0))
    coarse = kl_topk(exact, worse, 4)[np.concatenate([ids[:-1] for ids in lists])].mean()
    assert found.kl_mean == found.kl_mean_coarse == pytest.approx(coarse, abs=1e-6)


def test_the_error_of_a_sealed_reference_is_that_of_its_result() -> None:
    exact, worse = table(V), table(V) + table(V, 9, 0.6)
    reference = sealed(Bigram(exact), k=4)
    ids = [s[:-1] for s in reference.sequences.lists()]
    rows = [reference.positions.rows(where) for where in reference.sequence_rows()]
    errors = np.concatenate([estimate_error(r, exact[i], worse[i]) for r, i in zip(rows, ids, strict=True)])
    found = evaluate(Bigram(worse), reference, generate=False)
    full = kl_full(exact, worse)[np.concatenate(ids)].mean()
    assert errors.mean() == pytest.approx(full - found.kl_mean, abs=1e-9)
    assert abs(errors.mean()) < 0.3 * (full - found.kl_mean_coarse)


def test_standard_error_of_equal_sequences_is_that_of_their_means() -> None:
    reference = sealed(Bigram(table(V)), n=8, length=20)
    worse = Bigram(table(V) + table(V, 9, 0.4))
    found = evaluate(worse, reference, generate=False)
    means = []
    for ids in reference.sequences.lists():
        one = seal(Bigram(table(V)), [ids], [], origin=ORIGIN)
        means.append(math.log(evaluate(worse, one).ppl_ratio))
    expected = found.ppl_ratio * np.std(means, ddof=1) / math.sqrt(8)
    assert found.ppl_ratio_se == pytest.approx(expected, rel=1e-4)


def test_bootstrap_interval_holds_the_mean_and_is_reproducible() -> None:
    reference, worse = sealed(Bigram(table(V))), Bigram(table(V) + table(V, 9, 0.4))
    found = evaluate(worse, reference)
    assert found.kl_mean_low is not None
    assert found.kl_mean_high is not None
    assert found.kl_mean_low < found.kl_mean < found.kl_mean_high
    assert evaluate(worse, reference) == found


def test_more_noise_is_judged_worse() -> None:
    reference = sealed(Bigram(table(V)))
    noise = table(V, 9, 1.0)
    found = [evaluate(Bigram(table(V) + s * noise), reference, generate=False) for s in (0.1, 0.5, 2.0)]
    assert [f.kl_mean for f in found] == sorted(f.kl_mean for f in found)
    assert found[0].kl_mean < 0.02 < 0.2 < found[2].kl_mean
    assert found[0].same_top > found[2].same_top


def test_one_sequence_has_no_interval() -> None:
    engine = Bigram(table(V))
    found = evaluate(engine, seal(engine, text(V, n=1), [], origin=ORIGIN))
    assert (found.kl_mean_low, found.kl_mean_high, found.ppl_ratio_se) == (None, None, None)
    assert found.generation is None


def test_an_absurd_engine_gives_figures_that_json_can_hold() -> None:
    found = evaluate(Bigram(-1000 * table(V)), sealed(Bigram(table(V))))
    again = msgspec.json.decode(msgspec.json.encode(found), type=Coherence)
    assert again == found
    assert found.ppl_ratio > 1e100


def test_progress_counts_sequences_and_prompts_and_logits_are_asked_once_each() -> None:
    seen: list[tuple[int, int]] = []
    engine = Bigram(table(V))
    reference = sealed(engine)
    engine.asked.clear()
    evaluate(engine, reference, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 11) for i in range(1, 12)]
    assert engine.asked == [23] * 6


@given(vocab_size=st.integers(2, 12), n=st.integers(1, 3), length=st.integers(2, 9), k=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_extreme_shapes(vocab_size: int, n: int, length: int, k: int) -> None:
    engine = Bigram(table(vocab_size))
    reference = sealed(engine, n=n, length=length, k=k, tokens=3)
    found = evaluate(engine, reference)
    assert found.positions == n * (length - 1)
    assert found.k == min(k, vocab_size)
    assert found.kl_mean == 0
    assert found.same_top == 1
    assert 0 <= found.tail_mass_mean < 1
