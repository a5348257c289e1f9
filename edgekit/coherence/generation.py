"""Judging continuations: where they part from the reference, whether they repeat, loop, or come to an end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

LOOP_PERIOD_MAX = 16
LOOP_REPEATS_MIN = 3
LOOP_SPAN_MIN = 12
"""A cycle must cover this many tokens, so that three dots in a row are no loop."""


class Habits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a set of continuations looks, each figure a mean over continuations."""

    seq_rep_4: float
    """1 - distinct 4-grams / 4-grams; 0 for a continuation of fewer than four tokens."""
    loop_rate: float
    """Share that ends in a loop, see :func:`loops`."""
    eot_rate: float
    """Share that ends with an end-of-text token before the limit or at it."""


class Generation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Greedy continuations of the reference's prompts, compared with the full-precision model's."""

    prompts: int
    token_limit: int
    """Longest continuation in tokens."""
    first_divergent_token: tuple[int | None, ...]
    """One per prompt, counted from 0; None when the continuations are identical."""
    first_divergent_median: int | None
    """Lower median over prompts, identical ones counting as later than all others; None when it falls on such a one."""
    identical_share: float
    engine: Habits
    reference: Habits
    seq_rep_4_rise: float
    """Engine minus reference; above 0 is worse."""
    loop_rate_rise: float
    """Engine minus reference; above 0 is worse."""
    eot_rate_rise: float
    """Engine minus reference; far from 0 on either side is worse."""


def first_divergent_token(reference: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs or that only one of them has; None when identical (arXiv:2311.01544)."""
    for index, (a, b) in enumerate(zip(reference, other, strict=False)):
        if a != b:
            return index
    return None if len(reference) == len(other) else min(len(reference), len(other))


def seq_rep(ids: Sequence[int], n: int = 4) -> float:
    """1 - distinct n-grams / n-grams (Welleck et al. 2020, arXiv:1908.04319); 0 for fewer than n tokens."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def loops(ids: Sequence[int]) -> bool:
    """Whether a continuation ends in a cycle.

    True when, for some period p of at most 16 tokens, the last max(3·p, 12) tokens repeat with period p. A
    continuation that stops with an end-of-text token is never a loop, as that token occurs once.
    """
    return any(_has_period(ids, p, max(LOOP_REPEATS_MIN * p, LOOP_SPAN_MIN)) for p in range(1, LOOP_PERIOD_MAX + 1))


def _has_period(ids: Sequence[int], period: int, span: int) -> bool:
    if len(ids) < span:
        return False
    end = list(ids[len(ids) - span :])
    return end[period:] == end[:-period]


def habits(continuations: Sequence[Sequence[int]], stop: frozenset[int]) -> Habits:
    """Means over at least one continuation; `stop` are the end-of-text tokens."""
    return Habits(
        seq_rep_4=statistics.fmean(seq_rep(ids) for ids in continuations),
        loop_rate=statistics.fmean(loops(ids) for ids in continuations),
        eot_rate=statistics.fmean(bool(len(ids)) and int(ids[-1]) in stop for ids in continuations),
    )


def compare_continuations(
    reference: Sequence[Sequence[int]], engine: Sequence[Sequence[int]], stop: frozenset[int], token_limit: int
) -> Generation:
    """Compare at least one pair of continuations of the same prompts."""
    divergent = tuple(first_divergent_token(a, b) for a, b in zip(reference, engine, strict=True))
    ours, theirs = habits(engine, stop), habits(reference, stop)
    return Generation(
        prompts=len(reference),
        token_limit=token_limit,
        first_divergent_token=divergent,
        first_divergent_median=_censored_median(divergent),
        identical_share=statistics.fmean(index is None for index in divergent),
        engine=ours,
        reference=theirs,
        seq_rep_4_rise=ours.seq_rep_4 - theirs.seq_rep_4,
        loop_rate_rise=ours.loop_rate - theirs.loop_rate,
        eot_rate_rise=ours.eot_rate - theirs.eot_rate,
    )


def _censored_median(values: Sequence[int | None]) -> int | None:
    known = sorted(value for value in values if value is not None)
    middle = (len(values) - 1) // 2
    return known[middle] if middle < len(known) else None
