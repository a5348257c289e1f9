"""PASS or FAIL: a coherence result against a target's limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from edgekit.coherence.metrics import Coherence


class CoherenceLimits(Protocol):
    """What a target may limit; None leaves a metric unjudged. Limits are inclusive."""

    @property
    def kl_mean_max(self) -> float | None:
        """Nats."""

    @property
    def kl_p999_max(self) -> float | None:
        """Nats."""

    @property
    def same_top_min(self) -> float | None:
        """Share, 0 to 1."""

    @property
    def ppl_ratio_max(self) -> float | None:
        """Engine / reference."""

    @property
    def seq_rep_4_rise_max(self) -> float | None:
        """Absolute rise of a share, 0 to 1."""

    @property
    def loop_rate_rise_max(self) -> float | None:
        """Absolute rise of a share, 0 to 1."""


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric against its limit."""

    name: str
    """The limit's key in a target file, for example "kl_mean_max"."""
    measured: float | None
    """None when it was not measured; such a check fails."""
    limit: float
    passed: bool
    sentence: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The outcome of all checks."""

    result: Literal["PASS", "FAIL"]
    checks: tuple[Check, ...]
    sentence: str
    """One line for a person, starting with the result."""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return self.result == "PASS"


@dataclass(frozen=True)
class _Rule:
    key: str
    title: str
    show: Callable[[float], str]
    limit: Callable[[CoherenceLimits], float | None]
    measure: Callable[[Coherence], float | None]
    at_most: bool = True


def _nats(value: float) -> str:
    return f"{value:.3g} nats"


def _percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def _ratio(value: float) -> str:
    return f"{value:.4g}"


def _rise(value: float) -> str:
    return f"{value:+.3f}"


_RULES = (
    _Rule("kl_mean_max", "mean KL divergence", _nats, lambda x: x.kl_mean_max, lambda c: c.kl_mean),
    _Rule("kl_p999_max", "99.9 % KL divergence", _nats, lambda x: x.kl_p999_max, lambda c: c.kl_p999),
    _Rule("same_top_min", "same top token", _percent, lambda x: x.same_top_min, lambda c: c.same_top, at_most=False),
    _Rule("ppl_ratio_max", "perplexity ratio", _ratio, lambda x: x.ppl_ratio_max, lambda c: c.ppl_ratio),
    _Rule(
        "seq_rep_4_rise_max",
        "rise of seq-rep-4",
        _rise,
        lambda x: x.seq_rep_4_rise_max,
        lambda c: c.generation.seq_rep_4_rise if c.generation else None,
    ),
    _Rule(
        "loop_rate_rise_max",
        "rise of the loop rate",
        _rise,
        lambda x: x.loop_rate_rise_max,
        lambda c: c.generation.loop_rate_rise if c.generation else None,
    ),
)


def judge(coherence: Coherence, limits: CoherenceLimits) -> Verdict:
    """Compare every limited metric; a limited metric that was not measured fails."""
    checks = tuple(
        _check(rule, rule.measure(coherence), limit) for rule in _RULES if (limit := rule.limit(limits)) is not None
    )
    return Verdict(
        result="PASS" if all(check.passed for check in checks) else "FAIL", checks=checks, sentence=_sentence(checks)
    )


def _check(rule: _Rule, measured: float | None, limit: float) -> Check:
    if measured is None:
        passed, text = False, f"{rule.title} was not measured (limit {rule.show(limit)})"
    else:
        passed = measured <= limit if rule.at_most else measured >= limit
        relation = "within" if passed else "above" if rule.at_most else "below"
        text = f"{rule.title} {rule.show(measured)} is {relation} the limit of {rule.show(limit)}"
    return Check(name=rule.key, measured=measured, limit=limit, passed=passed, sentence=text)


def _sentence(checks: tuple[Check, ...]) -> str:
    if not checks:
        return "PASS: the target sets no coherence limits, so nothing was judged."
    failed = [check.sentence for check in checks if not check.passed]
    if failed:
        return f"FAIL: {'; '.join(failed)}."
    return f"PASS: {'; '.join(check.sentence for check in checks)}."
