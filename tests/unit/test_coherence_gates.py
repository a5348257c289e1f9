from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from test_coherence_engine import Bigram, sealed, table

from edgekit.coherence.gates import Verdict, judge
from edgekit.coherence.metrics import Coherence, evaluate


@dataclass(frozen=True)
class Limits:
    kl_mean_max: float | None = None
    kl_p999_max: float | None = None
    same_top_min: float | None = None
    ppl_ratio_max: float | None = None
    seq_rep_4_rise_max: float | None = None
    loop_rate_rise_max: float | None = None


def measured(generate: bool = True) -> Coherence:
    return evaluate(Bigram(table(64) + table(64, 9, 0.4)), sealed(Bigram(table(64))), generate=generate)


METRICS = {
    "kl_mean_max": lambda c: c.kl_mean,
    "kl_p999_max": lambda c: c.kl_p999,
    "same_top_min": lambda c: c.same_top,
    "ppl_ratio_max": lambda c: c.ppl_ratio,
    "seq_rep_4_rise_max": lambda c: c.generation.seq_rep_4_rise,
    "loop_rate_rise_max": lambda c: c.generation.loop_rate_rise,
}


@pytest.mark.parametrize("key", METRICS)
def test_each_limit_is_inclusive_and_fails_just_beyond(key: str) -> None:
    found = measured()
    value = METRICS[key](found)
    worse = -1e-6 if key.endswith("_max") else 1e-6
    assert judge(found, Limits(**{key: value})).passed
    verdict = judge(found, Limits(**{key: value + worse}))
    assert verdict.result == "FAIL"
    assert [(c.name, c.measured, c.passed) for c in verdict.checks] == [(key, value, False)]
    assert ("above" if key.endswith("_max") else "below") in verdict.sentence


def test_the_sentence_names_only_what_failed() -> None:
    verdict = judge(measured(), Limits(kl_mean_max=1e-4, same_top_min=0.01))
    assert verdict.sentence.startswith("FAIL: mean KL divergence ")
    assert verdict.sentence.endswith("is above the limit of 0.0001 nats.")
    assert "same top token" not in verdict.sentence
    assert [check.passed for check in verdict.checks] == [False, True]


def test_what_was_not_measured_does_not_pass() -> None:
    verdict = judge(measured(generate=False), Limits(loop_rate_rise_max=1.0))
    assert not verdict.passed
    assert "not measured" in verdict.sentence


def test_no_limits_are_said_to_judge_nothing() -> None:
    verdict = judge(measured(), Limits())
    assert verdict.passed
    assert verdict.checks == ()
    assert "nothing was judged" in verdict.sentence


def test_a_verdict_goes_through_json() -> None:
    verdict = judge(measured(), Limits(kl_mean_max=0.05, same_top_min=0.9))
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict) == verdict
