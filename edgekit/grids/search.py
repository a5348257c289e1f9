"""Scales that make the importance-weighted squared error of each block small.

A block's weights x are coded as integers q in [-zero, top - zero] with x ≈ step * q. For given codes the best step is
the least-squares one, Σ w x q / Σ w q². Each candidate step gives codes, is refitted to them and judged by the error
Σ w (x - step * q)²; the winner's codes are rounded again and its step refitted once more. No move of these raises the
error above that of the plain scale (largest magnitude, or minimum to maximum), which is the first candidate.

Blocks are computed as columns of a (block, count) array, so that every operation runs along contiguous memory and the
sums have a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.grids.base import F32
from edgekit.grids.parallel import each_chunk

_CHUNK = 1 << 18
"""Weights searched at a time: smaller chunks fit the cache better, but their threads wait for the interpreter."""

_SCALE = np.dtype("<f2")
"""Type in which files store a step."""


@dataclass(frozen=True)
class Codes:
    """The integer codes of a format and the candidates to try for their step."""

    block: int
    top: int
    """Largest code; the smallest is 0."""
    zero: int | None
    """Code that means zero; None when each block has its own."""
    steps: tuple[float, ...]
    """Candidates. With a fixed zero: largest magnitude / step, negative ones let it meet the lower end of the codes.
    Else: factors of (maximum - minimum) / top."""


@dataclass(frozen=True)
class Found:
    """What the search chose."""

    codes: NDArray[np.uint8]
    """(rows, columns)."""
    scales: NDArray[Any]
    """(rows, blocks)."""
    zero_points: NDArray[np.uint8]
    """(rows, blocks)."""


def search(weights: F32, importance: F32, form: Codes) -> Found:
    """Codes, scales and zero points of a matrix.

    Args:
        weights: (rows, columns), finite; a last block shorter than the others is allowed.
        importance: (columns,), positive.
        form: the codes.
    """
    rows, columns = weights.shape
    blocks = -(-columns // form.block)
    per_chunk = max(1, _CHUNK // columns)
    weigh = _columns(np.broadcast_to(importance, (min(per_chunk, rows), columns)), form.block)
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, blocks), _SCALE)
    zero_points = np.empty((rows, blocks), np.uint8)

    def work(chunk: slice) -> None:
        x = _columns(weights[chunk], form.block)
        q, step, zero = _solve(x, weigh[:, : x.shape[1]], form)
        codes[chunk] = q.T.reshape(-1, blocks * form.block)[:, :columns]
        scales[chunk] = step.reshape(-1, blocks)
        zero_points[chunk] = zero.reshape(-1, blocks)

    each_chunk(rows, per_chunk, work)
    return Found(codes, scales, zero_points)


def _columns(rows: NDArray[np.float32], block: int) -> F32:
    """Blocks of (rows, columns) as columns (block, rows * blocks); a short last block is filled with zeros."""
    if missing := -rows.shape[1] % block:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    return np.array(rows.reshape(-1, block).T, order="C")  # always a copy: the caller's weights stay as they are


def _solve(x: F32, w: F32, form: Codes) -> tuple[NDArray[np.uint8], NDArray[Any], F32]:
    """Codes (block, count), stored scales and zero points (count,)."""
    # A power of two for each block brings its weights near 1: exact, and no square can overflow or vanish.
    exponent = np.frexp(np.abs(x).max(axis=0))[1].clip(-125, 126)
    power = np.ldexp(np.float32(1), -exponent)
    x *= power
    step, zero = _best(x, w, form)
    stored = (step / power).astype(_SCALE)
    # The codes are those nearest to what the file says, not to the step before rounding.
    q = np.empty_like(x)
    _round(x, _inverse(stored.astype(np.float32) * power), zero, form.top, q)
    q += zero
    return q.astype(np.uint8), stored, zero


def _best(x: F32, w: F32, form: Codes) -> tuple[F32, F32]:
    """The step and zero of the candidate with the least error, after one more round of refitting."""
    buffers = np.empty_like(x), np.empty_like(x)
    candidates = _ranges(x, form) if form.zero is None else _peaks(x, form, form.zero)
    step, zero = next(candidates)
    error, step = _refit(x, w, step, zero, form.top, buffers)
    for start, middle in candidates:
        other_error, other_step = _refit(x, w, start, middle, form.top, buffers)
        better = other_error < error
        error, step = np.where(better, other_error, error), np.where(better, other_step, step)
        zero = np.where(better, middle, zero)
    again, refined = _refit(x, w, step, zero, form.top, buffers)
    return np.where(again < error, refined, step), zero


def _peaks(x: F32, form: Codes, zero: int) -> Iterator[tuple[F32, F32]]:
    """Steps that put the weight of largest magnitude on a given level; the first two are the plain choice."""
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    middle = np.full_like(peak, zero)
    for level in (-zero, zero, *form.steps):
        yield peak / np.float32(level), middle


def _ranges(x: F32, form: Codes) -> Iterator[tuple[F32, F32]]:
    """Steps that cover the block's range or a part of it, shifted by half a step; the first is the plain choice."""
    high, low = np.maximum(x.max(axis=0), 0), np.minimum(x.min(axis=0), 0)
    span, centre = (high - low) / np.float32(form.top), (high + low) / np.float32(2)
    for factor, shift in ((1.0, 0.0), *((factor, shift) for factor in form.steps for shift in (-0.5, 0.5))):
        step = span * np.float32(factor)
        zero = np.rint(np.float32(form.top / 2 + shift) - centre * _inverse(step))
        yield step, np.clip(zero, 0, form.top)


def _refit(x: F32, w: F32, step: F32, zero: F32, top: int, buffers: tuple[F32, F32]) -> tuple[F32, F32]:
    """Squared error and least-squares step (count,) of the codes that `step` and `zero` give.

    Both come from the remainders r = x / step - q, which are small: the difference of two large sums would lose the
    digits that tell 8-bit candidates apart.
    """
    q, r = buffers
    inverse = _inverse(step)
    _round(x, inverse, zero, top, q)
    np.multiply(x, inverse, out=r)
    np.subtract(r, q, out=r)
    rest = np.einsum("ij,ij,ij->j", w, r, r)
    match = np.einsum("ij,ij,ij->j", w, r, q)
    move = match * _inverse(np.einsum("ij,ij,ij->j", w, q, q))
    error: F32 = step * step * (rest - match * move)
    best: F32 = step * (1 + move)
    return error, best


def _round(x: F32, inverse: F32, zero: F32, top: int, out: F32) -> None:
    """Nearest codes relative to zero, float32 (block, count), into `out`."""
    np.multiply(x, inverse, out=out)
    np.rint(out, out=out)
    np.maximum(out, -zero, out=out)
    np.minimum(out, np.float32(top) - zero, out=out)


def _inverse(values: F32) -> F32:
    """1 / values, and 0 for 0."""
    inverse: F32 = np.divide(np.float32(1), values, out=np.zeros_like(values), where=values != 0)
    return inverse
