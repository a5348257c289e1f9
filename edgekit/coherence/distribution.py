"""Next-token distributions, coarse-grained to some named tokens plus the tail of all others, and draws from the tail.

All arithmetic is in float64 on a few rows at a time; results are rounded to float32, the precision that a reference
file stores. Both sides of a comparison pass through the same code and the same rounding, so that bit-identical logits
have a divergence of exactly zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from edgekit.sampling import draw_indices

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Ids = NDArray[np.int64]

_CHUNK_ELEMENTS = 1 << 21
"""Rows are taken together up to this many logits: 16 MiB of float64, whatever the vocabulary."""
_LOWEST = -1e30
"""Log-probabilities below this are rounded up to it, so that they stay finite in float32."""
_LEAST_MASS = 1e-300
"""Below this the mass of a tail is summed in the log domain."""
_MAX_LOG_RATIO = 100.0
"""exp() of more is not taken. A draw x from p_tail exceeds it only if p_tail(x) < e^-100: in effect never."""


@dataclass(frozen=True, eq=False)
class Positions:
    """What a model says at n positions; log-probabilities in nats."""

    top_ids: I32
    """(n, k): the named tokens; in a reference the k most probable, most probable first."""
    top_logp: F32
    """(n, k): their log-probabilities."""
    tail_logp: F32
    """(n,): log of the probability of all other tokens together; -inf when k is the whole vocabulary."""
    next_logp: F32
    """(n,): log-probability of the token that really follows."""
    entropy: F32
    """(n,): entropy of the whole distribution."""
    drawn_ids: I32
    """(n, m): tokens outside the named ones; in a reference drawn from its tail distribution, with replacement."""
    drawn_logp: F32
    """(n, m): their log-probabilities, of the whole distribution."""

    def rows(self, where: slice) -> Positions:
        """The positions of a slice (views, no copy)."""
        return Positions(**{field.name: getattr(self, field.name)[where] for field in fields(self)})


def chunks(n: int, vocab_size: int) -> Iterator[slice]:
    """Slices of 0..n, each of as many rows as keep a float64 copy of their logits small."""
    step = max(1, _CHUNK_ELEMENTS // vocab_size)
    for first in range(0, n, step):
        yield slice(first, min(n, first + step))


def log_softmax(logits: F32 | F64) -> F64:
    """Log-probabilities (…, V) in float64 of finite logits (…, V)."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def top_tokens(logits: F32, k: int) -> I32:
    """Ids (n, min(k, V)) of the largest logits (n, V), largest first.

    Of equal logits the lower id comes first, as in `argmax`; the choice does not depend on the sorting algorithm.
    """
    n, vocab_size = logits.shape
    k = min(k, vocab_size)
    ids = np.empty((n, k), np.int32)
    for row in range(n):
        least = np.partition(logits[row], vocab_size - k)[vocab_size - k]
        candidates = np.flatnonzero(logits[row] >= least)
        ids[row] = candidates[np.argsort(-logits[row, candidates], kind="stable")[:k]]
    return ids


def draw_tail(logits: F32, top_ids: I32, m: int, random: np.random.Generator) -> I32:
    """Token ids (n, m), with replacement, of finite logits' (n, V) distribution without the tokens `top_ids` (n, k).

    Without a tail (k = V) there is nothing to draw: (n, 0).
    """
    n, vocab_size = logits.shape
    if top_ids.shape[1] == vocab_size:
        return np.empty((n, 0), np.int32)
    ids = np.empty((n, m), np.int32)
    for row in range(n):
        tail = logits[row].astype(np.float64)
        tail[top_ids[row]] = -np.inf
        # Relative to the tail's own largest logit no tail can underflow, however little mass it has.
        mass = np.cumsum(np.exp(tail - tail.max()))
        ids[row] = draw_indices(mass, random.random(m))
    return ids


def describe(logits: F32, next_ids: Ids, top_ids: I32, drawn_ids: I32) -> Positions:
    """The distributions of finite logits (n, V), coarse-grained to `top_ids` (n, k); `next_ids` (n,) really follow.

    `drawn_ids` (n, m) are tokens outside `top_ids` whose log-probabilities are also kept.
    """
    n = len(logits)
    fresh = Positions(
        top_ids=top_ids,
        top_logp=np.empty(top_ids.shape, np.float32),
        tail_logp=np.empty(n, np.float32),
        next_logp=np.empty(n, np.float32),
        entropy=np.empty(n, np.float32),
        drawn_ids=drawn_ids,
        drawn_logp=np.empty(drawn_ids.shape, np.float32),
    )
    for where in chunks(n, logits.shape[1]):
        logp = log_softmax(logits[where])
        fresh.top_logp[where] = _finite(np.take_along_axis(logp, top_ids[where], axis=1))
        fresh.drawn_logp[where] = _finite(np.take_along_axis(logp, drawn_ids[where], axis=1))
        fresh.next_logp[where] = _finite(np.take_along_axis(logp, next_ids[where, None], axis=1)[:, 0])
        p = np.exp(logp)
        fresh.entropy[where] = np.maximum(0.0, -(p * logp).sum(axis=1))
        fresh.tail_logp[where] = _tail(logp, p, top_ids[where])
    return fresh


def _finite(logp: F64) -> F64:
    return np.maximum(logp, _LOWEST)


def _tail(logp: F64, p: F64, top_ids: I32) -> F64:
    """Log of the mass (n,) outside `top_ids`, summed itself, as 1 - sum of the top would cancel. Consumes `p`."""
    if top_ids.shape[1] == p.shape[1]:
        return np.full(len(p), -np.inf)
    np.put_along_axis(p, top_ids.astype(np.int64), 0.0, axis=1)
    mass: F64 = p.sum(axis=1)
    tail = np.log(np.maximum(mass, _LEAST_MASS))
    for row in np.flatnonzero(mass < _LEAST_MASS):
        rest = np.delete(logp[row], top_ids[row])
        tail[row] = rest.max() + np.log(np.exp(rest - rest.max()).sum())
    return _finite(tail)


def coarse_kl(p: Positions, q: Positions) -> F64:
    """KL(p‖q) in nats (n,) of two distributions coarse-grained to the same tokens.

    sum over the k named tokens of p·ln(p/q), plus the same term for the two tails. By the log-sum inequality
    (Cover & Thomas, Elements of Information Theory, theorem 2.7.1) merging tokens into a tail never raises the
    divergence: this is a lower bound of the divergence over the whole vocabulary, and rises with k.
    """
    top = p.top_logp.astype(np.float64)
    kl: F64 = (np.exp(top) * (top - q.top_logp)).sum(axis=1)
    has_tail = np.isfinite(p.tail_logp)
    tail = p.tail_logp[has_tail].astype(np.float64)
    kl[has_tail] += np.exp(tail) * (tail - q.tail_logp[has_tail])
    # Below zero lies only the rounding of float32, under 1e-5 nats.
    return np.maximum(kl, 0.0)


def tail_kl(p: Positions, q: Positions) -> F64:
    """Estimate (n,), in nats, of what :func:`coarse_kl` hides: P·KL(p_tail‖q_tail), P and Q being the tails' masses.

    Mean over the m tokens x drawn from p_tail of r - 1 - ln r with r = (q(x)/Q) / (p(x)/P): never negative, and without
    bias, as E[r] = 1 and E[-ln r] = KL (J. Schulman, "Approximating KL Divergence", 2020, there k3). 0 without draws.
    """
    if not p.drawn_ids.shape[1]:
        return np.zeros(len(p.drawn_ids))
    tail = p.tail_logp.astype(np.float64)
    theirs = p.drawn_logp - tail[:, None]
    ours = q.drawn_logp - q.tail_logp.astype(np.float64)[:, None]
    log_r = np.minimum(ours - theirs, _MAX_LOG_RATIO)
    k3: F64 = np.maximum(np.expm1(log_r) - log_r, 0.0).mean(axis=1)
    return np.exp(tail) * k3


def kl_full(p_logits: F32 | F64, q_logits: F32 | F64) -> F64:
    """Exact KL(p‖q) in nats (…,) over the whole vocabulary, from two arrays of finite logits (…, V)."""
    logp = log_softmax(p_logits)
    kl: F64 = (np.exp(logp) * (logp - log_softmax(q_logits))).sum(axis=-1)
    return np.maximum(kl, 0.0)


def kl_topk(p_logits: F32, q_logits: F32, k: int) -> F64:
    """KL(p‖q) in nats (n,) of logits (n, V), coarse-grained to p's top k tokens and the tail: a lower bound."""
    top_ids, unused = top_tokens(p_logits, k), np.zeros(len(p_logits), np.int64)
    none = np.empty((len(p_logits), 0), np.int32)
    return coarse_kl(describe(p_logits, unused, top_ids, none), describe(q_logits, unused, top_ids, none))


def estimate_error(sealed: Positions, p_logits: F32, q_logits: F32) -> F64:
    """Exact KL(p‖q) minus its estimate from `sealed`, in nats (n,), of either sign and 0 on average.

    Args:
        sealed: n rows of a reference.
        p_logits: (n, V) of the full-precision model at these rows.
        q_logits: (n, V) of the judged engine.
    """
    said = describe(q_logits, np.zeros(len(q_logits), np.int64), sealed.top_ids, sealed.drawn_ids)
    return kl_full(p_logits, q_logits) - coarse_kl(sealed, said) - tail_kl(sealed, said)
