"""Rounding that looks at a layer's output: GPTQ, coordinate descent over codes, least squares over scales.

All three lower the same error. A layer y = W x whose rows w are rounded to v has, summed over calibration text, the
squared error Σ_rows (w - v) H (w - v)ᵀ with H = E[x xᵀ], the second moment of its inputs; rows are independent.

* GPTQ (Frantar et al., arXiv:2210.17323, Cholesky form, "act order"): columns are rounded one by one, those with the
  largest inputs first, and what rounding one leaves behind is made up for by those that follow. Scales are given, so
  that the order of rounding is free.
* Coordinate descent (as in QuantEase, arXiv:2309.01885): every code in turn moves to the level that is best with all
  others as they are; the error never rises.
* For given codes the error is quadratic in the scales: the best ones are the solution of one small linear system a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.errors import BadWeightsError
from edgekit.grids import get
from edgekit.grids.base import F32, Quantized
from edgekit.grids.scalar import Scalar, scalar, storable_steps, with_codes, with_steps

DAMPING = 0.05
"""Added to H's diagonal, as a share of its mean: what the calibration text does not tell (arXiv:2210.17323, 3.3). The
paper's 0.01 trusts a short text too much: docs/experiments/rounding.md."""
REFINEMENTS = 1
"""Rounds of new scales and coordinate descent: a second one gains next to nothing."""
_RIDGE = 1e-4
"""How strongly new scales are held to the old ones, as a share of the system's mean diagonal."""
_PANEL = 64
"""Columns rounded before what they leave behind is carried over to all others."""
_ROWS, _SYSTEMS = 8192, 1 << 23
"""Rows rounded at a time, and entries of their linear systems: they bound the memory of wide and of tall matrices."""


def round_matrix(
    weights: F32,
    moment: F32,
    grid: str,
    *,
    refinements: int = REFINEMENTS,
    damping: float = DAMPING,
    tell: Callable[[int], None] = lambda _: None,
) -> Quantized:
    """The matrix on a grid, rounded by GPTQ and refined by coordinate descent and least squares.

    The result's error under the damped moment is never above that of the grid's own quantizer.

    Args:
        weights: (rows, columns).
        moment: H, (columns, columns), symmetric, no negative eigenvalue.
        grid: its name. A format that is not rounded weight by weight (IQ3) or has too many levels to gain (F16) keeps
            what its own quantizer gives, with the diagonal of H as importance.
        refinements: rounds of new scales and coordinate descent.
        damping: share of the mean of H's diagonal.
        tell: called once with the number of rows that keep what the grid's own quantizer gives, because nothing was
            better.

    Raises:
        BadWeightsError: H holds NaN or infinity; and as the grid's own quantizer.
        GridError: as the grid's own quantizer.
    """
    _check(moment, weights.shape[1])
    importance = np.ascontiguousarray(moment.diagonal())
    nearest = get(grid).quantize(weights, importance)
    form = scalar(nearest)
    if form is None:
        tell(len(weights))
        return nearest
    most = max(64, min(_ROWS, _SYSTEMS // form.steps.shape[1] ** 2))
    whole = damped(torch.from_numpy(np.ascontiguousarray(moment)), damping)
    order, factor = _factor(whole)
    parts = [
        _rows(weights[begin : begin + most], _cut(nearest, begin, most), whole, order, factor, refinements)
        for begin in range(0, len(weights), most)
    ]
    tell(sum(own for _, own in parts))
    return _stack([part for part, _ in parts])


def _check(moment: F32, columns: int) -> None:
    if moment.shape != (columns, columns):
        raise BadWeightsError(f"the second moment has shape {moment.shape}", expected=f"({columns}, {columns})")
    if not np.isfinite(moment).all():
        raise BadWeightsError(
            "the second moment of a layer's inputs holds NaN or infinity",
            expected="finite activations on the calibration text",
            remedy="calibrate with another text, or use an earlier checkpoint",
        )


def damped(moment: torch.Tensor, share: float) -> torch.Tensor:
    """H with `share` of its mean diagonal added to the diagonal; an input that is always zero gets the mean itself."""
    whole = moment.clone()
    diagonal = whole.diagonal()
    mean = diagonal.mean()
    mean = mean if mean > 0 else torch.ones(())
    diagonal[diagonal <= 0] = mean
    diagonal += share * mean
    return whole


def _factor(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of rounding and the upper Cholesky factor of H⁻¹ in that order."""
    order = torch.argsort(moment.diagonal(), descending=True, stable=True)
    ordered = moment[order][:, order].double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    return order, torch.linalg.cholesky(inverse, upper=True).float()


@dataclass(frozen=True)
class _View:
    """Scalar's arrays in torch, spread over columns: every one (rows, columns)."""

    form: Scalar
    levels: torch.Tensor
    middles: torch.Tensor
    step: torch.Tensor
    inverse: torch.Tensor
    shift: torch.Tensor
    """offset - zero * step: a weight is level * step + shift."""

    def snap(self, target: torch.Tensor, column: int) -> torch.Tensor:
        """The levels (rows,) nearest to weights (rows,) of one column."""
        raw = (target - self.shift[:, column]) * self.inverse[:, column]
        if self.form.uniform:
            return raw.round_().clamp_(float(self.levels[0]), float(self.levels[-1]))
        return self.levels[torch.bucketize(raw, self.middles)]

    def values(self, chosen: torch.Tensor) -> torch.Tensor:
        """Weights of levels (rows, columns)."""
        return chosen * self.step + self.shift


def _view(form: Scalar, columns: int) -> _View:
    def spread(array: F32) -> torch.Tensor:
        return torch.from_numpy(array).repeat_interleave(form.group, dim=1)[:, :columns].contiguous()

    levels, step = torch.from_numpy(form.levels), spread(form.steps)
    inverse = torch.where(step != 0, 1 / step, torch.zeros_like(step))
    shift = spread(form.offsets - form.zeros * form.steps)
    return _View(form, levels, (levels[1:] + levels[:-1]) / 2, step, inverse, shift)


def _rows(
    weights: F32, nearest: Quantized, moment: torch.Tensor, order: torch.Tensor, factor: torch.Tensor, refinements: int
) -> tuple[Quantized, int]:
    """One piece of the matrix: the best of what the grid, GPTQ and its refinements give, and how often the grid's."""
    target = torch.from_numpy(np.ascontiguousarray(weights, np.float32))
    form = _scalar_of(nearest)
    view = _view(form, target.shape[1])
    chosen = _gptq(target, view, order, factor)
    found = _with_levels(nearest, view, chosen)
    candidates = [nearest, found]
    for _ in range(refinements):
        if form.free:
            found = _new_steps(found, view, chosen, target, moment)
            form = _scalar_of(found)
            view = _view(form, target.shape[1])
        chosen = _descend(target, view, chosen, moment)
        found = _with_levels(found, view, chosen)
        candidates.append(found)
    return _best_rows(candidates, target, moment)


def _scalar_of(quantized: Quantized) -> Scalar:
    if (form := scalar(quantized)) is None:
        raise ValueError(f"{quantized.grid} is not rounded weight by weight")
    return form


def _gptq(target: torch.Tensor, view: _View, order: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Levels (rows, columns). `factor` is upper triangular, in the order of rounding."""
    left = target[:, order].clone()
    chosen = torch.empty_like(target)
    columns = order.tolist()
    for begin in range(0, len(columns), _PANEL):
        panel = columns[begin : begin + _PANEL]
        end = begin + len(panel)
        work = left[:, begin:end].t().contiguous()
        errors = torch.empty_like(work)
        inner = factor[begin:end, begin:end]
        for place, column in enumerate(panel):
            level = view.snap(work[place], column)
            chosen[:, column] = level
            rest = work[place] - (level * view.step[:, column] + view.shift[:, column])
            errors[place] = rest / inner[place, place]
            work[place + 1 :] -= torch.outer(inner[place, place + 1 :], errors[place])
        left[:, end:] -= errors.t() @ factor[begin:end, end:]
    return chosen


def _descend(target: torch.Tensor, view: _View, chosen: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """One pass of coordinate descent over all columns; returns new levels."""
    levels = chosen.clone()
    pull = (target - view.values(levels)) @ moment
    columns = target.shape[1]
    for begin in range(0, columns, _PANEL):
        end = min(columns, begin + _PANEL)
        work = pull[:, begin:end].t().contiguous()
        moved = torch.zeros_like(work)
        inner = moment[begin:end, begin:end]
        for place, column in enumerate(range(begin, end)):
            old = levels[:, column] * view.step[:, column] + view.shift[:, column]
            level = view.snap(old + work[place] / inner[place, place], column)
            moved[place] = old - (level * view.step[:, column] + view.shift[:, column])
            levels[:, column] = level
            work += torch.outer(inner[place], moved[place])
        pull += moved.t() @ moment[begin:end]
    return levels


def _new_steps(
    found: Quantized, view: _View, chosen: torch.Tensor, target: torch.Tensor, moment: torch.Tensor
) -> Quantized:
    """Least-squares steps for the codes as they are: for each row A s = b with A = QᵀHQ, b = QᵀH(w - offset)."""
    form = view.form
    rows, columns = target.shape
    groups = form.steps.shape[1]
    zeros = torch.from_numpy(form.zeros).repeat_interleave(form.group, dim=1)[:, :columns]
    offsets = torch.from_numpy(form.offsets).repeat_interleave(form.group, dim=1)[:, :columns]
    basis = chosen - zeros
    missing = groups * form.group - columns

    def by_group(array: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(array, (0, missing)).reshape(rows, groups, form.group).sum(dim=2)

    right = by_group(((target - offsets) @ moment) * basis)
    system = torch.empty(rows, groups, groups)
    for group in range(groups):
        part = slice(group * form.group, min(columns, (group + 1) * form.group))
        system[:, group] = by_group((basis[:, part] @ moment[part]) * basis)
    hold = _RIDGE * system.diagonal(dim1=1, dim2=2).mean(dim=1) + 1e-30
    old = torch.from_numpy(form.steps)
    system.diagonal(dim1=1, dim2=2).add_(hold[:, None])
    steps = torch.linalg.solve(system.double(), (right + hold[:, None] * old).double()).float().numpy()
    stored = storable_steps(found, steps)
    stored = np.where(np.isfinite(stored), stored, form.steps)
    return with_steps(found, stored)


def _with_levels(quantized: Quantized, view: _View, chosen: torch.Tensor) -> Quantized:
    index = torch.bucketize(chosen, view.middles)  # a level lies between its two middles
    return with_codes(quantized, view.form, index.numpy())


def _best_rows(candidates: list[Quantized], target: torch.Tensor, moment: torch.Tensor) -> tuple[Quantized, int]:
    """For each row the candidate with the least error; and how many rows took the first one."""
    grid = get(candidates[0].grid)
    errors = torch.stack([_error(torch.from_numpy(grid.dequantize(found)), target, moment) for found in candidates])
    best = errors.argmin(dim=0).numpy()
    fields = {
        name: np.stack([found.fields[name] for found in candidates])[best, np.arange(len(best))]
        for name in candidates[0].fields
    }
    return Quantized(candidates[0].grid, candidates[0].shape, fields), int((best == 0).sum())


def _error(values: torch.Tensor, target: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """(rows,) (w - v) H (w - v)ᵀ; infinite where v is not finite."""
    rest = target - values
    errors = ((rest @ moment) * rest).sum(dim=1)
    return torch.where(torch.isfinite(errors), errors, torch.inf)


def output_error(weights: F32, values: F32, moment: NDArray[np.float32]) -> float:
    """Σ_rows (w - v) H (w - v)ᵀ, the squared error of the layer's output."""
    found = _error(*(torch.from_numpy(np.ascontiguousarray(array)) for array in (values, weights, moment)))
    return float(found.double().sum())


def _cut(quantized: Quantized, begin: int, rows: int) -> Quantized:
    fields = {name: array[begin : begin + rows] for name, array in quantized.fields.items()}
    return Quantized(quantized.grid, (len(fields["codes"]), quantized.shape[1]), fields)


def _stack(parts: list[Quantized]) -> Quantized:
    if len(parts) == 1:
        return parts[0]
    fields = {name: np.concatenate([part.fields[name] for part in parts]) for name in parts[0].fields}
    return Quantized(parts[0].grid, (sum(part.shape[0] for part in parts), parts[0].shape[1]), fields)
