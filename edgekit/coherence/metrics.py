"""Judging an engine against a sealed reference: teacher-forced divergence, then free generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.coherence.distribution import (
    F32,
    F64,
    Ids,
    Positions,
    coarse_kl,
    describe,
    estimate_error,
    kl_full,
    kl_topk,
    tail_kl,
)
from edgekit.coherence.engine_calls import Progress, checked_greedy, checked_logits, refuse_long
from edgekit.coherence.generation import Generation, compare_continuations
from edgekit.coherence.reference import Reference
from edgekit.coherence.scoring import Answers, ItemScores, compare, option_logp
from edgekit.engines.base import Engine
from edgekit.errors import ParityError

__all__ = ["Coherence", "estimate_error", "evaluate", "kl_full", "kl_topk"]

_RESAMPLES = 1000
_BOOTSTRAP_SEED = 0
_MAX_EXPONENT = 700.0
"""exp() of more would overflow: a perplexity is capped at about 1e304."""


class Coherence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far an engine is from the full-precision model. Divergences and entropies in nats, shares from 0 to 1."""

    engine: str
    model: str
    text: Literal["self-generated", "file"]
    sequences: int
    positions: int
    """Predicted tokens."""
    k: int
    """Most probable tokens kept per position; what the others add to KL is estimated, see docs/coherence.md."""
    tail_mass_mean: float
    """Mean probability that the full-precision model gives to tokens that were not kept."""
    kl_mean: float
    """Without bias; the quantiles below carry the noise of the tail's estimate."""
    kl_mean_coarse: float
    """Lower bound of it: all tokens that were not kept counted as one."""
    kl_mean_low: float | None
    """Lower end of the bootstrap 95 % interval over sequences; None for a single sequence."""
    kl_mean_high: float | None
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    same_top: float
    """Share of positions where both find the same token most probable."""
    delta_p_rms: float
    """Root mean square change of the probability of the token that really follows."""
    ppl_reference: float
    ppl_engine: float
    ppl_ratio: float
    """Engine / reference."""
    ppl_ratio_se: float | None
    """Standard error of the ratio, sequences taken as the independent units; None for a single sequence."""
    entropy_reference: float
    entropy_engine: float
    generation: Generation | None
    """None when generation was switched off or the reference has no prompts."""
    items: ItemScores | None = None
    """Accuracy and flips; None when they were switched off or the reference has no items."""


@dataclass(frozen=True, eq=False)
class _Compared:
    """Per-position results (n,) of one sequence."""

    coarse: F64
    kl: F64
    same_top: NDArray[np.bool_]
    delta_p: F64
    delta_nll: F64
    """Negative log-likelihood of the engine minus the reference's."""
    entropy: F64


def evaluate(
    engine: Engine,
    reference: Reference,
    *,
    progress: Progress | None = None,
    generate: bool = True,
    items: bool = True,
) -> Coherence:
    """Ask `engine` everything that was sealed in `reference`. Holds one sequence's logits at a time.

    Args:
        engine: what is judged.
        reference: what the full-precision model says.
        progress: called after every sequence, prompt and item.
        generate: also continue the prompts.
        items: also answer the items.

    Raises:
        ParityError: vocabularies differ, or the engine returns NaN, infinity or a wrong shape; names the place.
        OptionError: a sequence does not fit into the engine's context.
    """
    generate = generate and len(reference.prompts) > 0
    answers = reference.answers if items else None
    _refuse_mismatch(engine, reference, generate, answers)
    done = len(reference.sequences) + (len(reference.prompts) if generate else 0)
    total = done + (len(answers.questions) if answers else 0)
    compared = []
    for index, (ids, rows) in enumerate(zip(reference.sequences.lists(), reference.sequence_rows(), strict=True)):
        compared.append(_compare(engine, ids, reference.positions.rows(rows), index))
        if progress:
            progress(index + 1, total)
    generation = _generate(engine, reference, progress, total) if generate else None
    scores = _answer(engine, answers, progress, done, total) if answers else None
    return _summary(engine.name, reference, compared, generation, scores)


def _answer(engine: Engine, answers: Answers, progress: Progress | None, done: int, total: int) -> ItemScores:
    def answered(index: int) -> None:
        if progress:
            progress(done + index + 1, total)

    return compare(answers, option_logp(engine, answers.questions, answered))


def _refuse_mismatch(engine: Engine, reference: Reference, generate: bool, answers: Answers | None) -> None:
    if engine.vocab_size != reference.meta.vocab_size:
        raise ParityError(
            f"{engine.name} has a vocabulary of {engine.vocab_size} tokens",
            expected=f"{reference.meta.vocab_size}, that of {reference.meta.origin.model}",
            remedy="compare an artefact with the reference of its own model",
        )
    lengths = (reference.sequences.lengths - 1).tolist()
    if generate:
        lengths += (reference.prompts.lengths + reference.meta.token_limit).tolist()
    if answers:
        lengths += (answers.questions.options.lengths - 1).tolist()
    refuse_long(engine, lengths)


def _compare(engine: Engine, ids: Ids, sealed: Positions, index: int) -> _Compared:
    logits: F32 = checked_logits(engine, ids[:-1], f"sequence {index}")
    said = describe(logits, ids[1:], sealed.top_ids, sealed.drawn_ids)
    coarse = coarse_kl(sealed, said)
    theirs, ours = sealed.next_logp.astype(np.float64), said.next_logp.astype(np.float64)
    return _Compared(
        coarse=coarse,
        kl=coarse + tail_kl(sealed, said),
        same_top=logits.argmax(axis=1) == sealed.top_ids[:, 0],
        delta_p=np.exp(ours) - np.exp(theirs),
        delta_nll=theirs - ours,
        entropy=said.entropy.astype(np.float64),
    )


def _generate(engine: Engine, reference: Reference, progress: Progress | None, total: int) -> Generation:
    limit, stop, made = reference.meta.token_limit, reference.stop, []
    for index, prompt in enumerate(reference.prompts.lists()):
        made.append(checked_greedy(engine, prompt, limit, stop, index))
        if progress:
            progress(len(reference.sequences) + index + 1, total)
    return compare_continuations([ids.tolist() for ids in reference.continuations.lists()], made, stop, limit)


def _summary(
    name: str,
    reference: Reference,
    parts: Sequence[_Compared],
    generation: Generation | None,
    items: ItemScores | None,
) -> Coherence:
    kl, delta_p = (np.concatenate([getattr(part, name) for part in parts]) for name in ("kl", "delta_p"))
    low, high = _bootstrap([part.kl for part in parts])
    nll = float(-reference.positions.next_logp.astype(np.float64).mean())
    rise, rise_se = _mean_and_error([part.delta_nll for part in parts])
    ratio = _exp(rise)
    median, p99, p999 = np.quantile(kl, [0.5, 0.99, 0.999]).tolist()
    return Coherence(
        engine=name,
        model=reference.meta.origin.model,
        text=reference.meta.origin.text,
        sequences=len(parts),
        positions=len(kl),
        k=reference.meta.k,
        tail_mass_mean=float(np.exp(reference.positions.tail_logp.astype(np.float64)).mean()),
        kl_mean=float(kl.mean()),
        kl_mean_coarse=float(np.concatenate([part.coarse for part in parts]).mean()),
        kl_mean_low=low,
        kl_mean_high=high,
        kl_median=median,
        kl_p99=p99,
        kl_p999=p999,
        kl_max=float(kl.max()),
        same_top=float(np.concatenate([part.same_top for part in parts]).mean()),
        delta_p_rms=float(np.sqrt((delta_p**2).mean())),
        ppl_reference=_exp(nll),
        ppl_engine=_exp(nll + rise),
        ppl_ratio=ratio,
        ppl_ratio_se=None if rise_se is None else ratio * rise_se,
        entropy_reference=float(reference.positions.entropy.astype(np.float64).mean()),
        entropy_engine=float(np.concatenate([part.entropy for part in parts]).mean()),
        generation=generation,
        items=items,
    )


def _exp(value: float) -> float:
    return math.exp(min(value, _MAX_EXPONENT))


def _totals(parts: Sequence[F64]) -> tuple[F64, F64]:
    return np.array([part.sum() for part in parts]), np.array([len(part) for part in parts], np.float64)


def _bootstrap(parts: Sequence[F64]) -> tuple[float, float] | tuple[None, None]:
    """Percentile bootstrap 95 % interval of the mean over positions, resampling whole sequences (fixed seed)."""
    if len(parts) < 2:
        return None, None
    sums, counts = _totals(parts)
    random = np.random.default_rng(_BOOTSTRAP_SEED)
    means = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        drawn = random.integers(0, len(parts), len(parts))
        means[index] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return low, high


def _mean_and_error(parts: Sequence[F64]) -> tuple[float, float | None]:
    """Mean over positions and its standard error with sequences as clusters (linearised ratio estimator)."""
    sums, counts = _totals(parts)
    mean = float(sums.sum() / counts.sum())
    if len(parts) < 2:
        return mean, None
    residual = sums - mean * counts
    scale = len(parts) / (len(parts) - 1)
    return mean, float(np.sqrt(scale * (residual**2).sum()) / counts.sum())
