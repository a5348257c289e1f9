"""Next-token distributions, coarse-grained to some named tokens plus the tail of all others.

All arithmetic is in float64 on a few rows at a time; results are rounded to float32, the precision that a reference
file stores. Both sides of a comparison pass through the same code and the same rounding, so that bit-identical logits
have a divergence of exactly zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Ids = NDArray[np.int64]

_CHUNK_ELEMENTS = 1 << 21
"""Rows are taken together up to this many logits: 16 MiB of float64, whatever the vocabulary."""
_LOWEST = -1e30
"""Log-probabilities below this are rounded up to it, so that they stay finite in float32."""
_LEAST_MASS = 1e-300


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

    def rows(self, where: slice) -> Positions:
        """The positions of a slice (views, no copy)."""
        return Positions(
            self.top_ids[where], self.top_logp[where], self.tail_logp[where], self.next_logp[where], self.entropy[where]
        )


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


def describe(logits: F32, next_ids: Ids, top_ids: I32) -> Positions:
    """The distributions of finite logits (n, V), coarse-grained to `top_ids` (n, k); `next_ids` (n,) really follow."""
    n, k = top_ids.shape
    fresh = Positions(top_ids, np.empty((n, k), np.float32), *(np.empty(n, np.float32) for _ in range(3)))
    for where in chunks(n, logits.shape[1]):
        logp = log_softmax(logits[where])
        fresh.top_logp[where] = _finite(np.take_along_axis(logp, top_ids[where], axis=1))
        fresh.next_logp[where] = _finite(np.take_along_axis(logp, next_ids[where, None], axis=1)[:, 0])
        p = np.exp(logp)
        fresh.entropy[where] = np.maximum(0.0, -(p * logp).sum(axis=1))
        fresh.tail_logp[where] = _tail(p, top_ids[where])
    return fresh


def _finite(logp: F64) -> F64:
    return np.maximum(logp, _LOWEST)


def _tail(p: F64, top_ids: I32) -> F64:
    """Log of the mass (n,) outside `top_ids`, summed itself, as 1 - sum of the top would cancel. Consumes `p`."""
    if top_ids.shape[1] == p.shape[1]:
        return np.full(len(p), -np.inf)
    np.put_along_axis(p, top_ids.astype(np.int64), 0.0, axis=1)
    mass: F64 = p.sum(axis=1)
    # Raising an underflowed tail of q can only make a divergence smaller: it stays a lower bound.
    return np.log(np.maximum(mass, _LEAST_MASS))


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


def kl_full(p_logits: F32 | F64, q_logits: F32 | F64) -> F64:
    """Exact KL(p‖q) in nats (…,) over the whole vocabulary, from two arrays of finite logits (…, V)."""
    logp = log_softmax(p_logits)
    kl: F64 = (np.exp(logp) * (logp - log_softmax(q_logits))).sum(axis=-1)
    return np.maximum(kl, 0.0)


def kl_topk(p_logits: F32, q_logits: F32, k: int) -> F64:
    """KL(p‖q) in nats (n,) of logits (n, V), coarse-grained to p's top k tokens and the tail, as in a reference."""
    top_ids = top_tokens(p_logits, k)
    unused = np.zeros(len(p_logits), np.int64)
    return coarse_kl(describe(p_logits, unused, top_ids), describe(q_logits, unused, top_ids))


def truncation_error(p_logits: F32, q_logits: F32, k: int) -> F64:
    """What coarse-graining to k tokens hides: kl_full - kl_topk in nats (n,), not negative but for rounding."""
    return kl_full(p_logits, q_logits) - kl_topk(p_logits, q_logits, k)
