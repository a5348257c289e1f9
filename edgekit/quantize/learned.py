"""Learned rounding: a block's codes and steps together, by gradients of the block's own output (--effort best).

GPTQ rounds one matrix at a time. Here all matrices of a transformer block are moved together so that the *block* says
what its full-precision twin says of the same input (block reconstruction: BRECQ, arXiv:2102.05426). Each weight has a
latent position on its grid, in levels, that may move half a level either way from where the weight lies; codes are the
nearest levels, gradients pass the rounding as if it were not there, and the step of the descent is the gradient's sign
with a rate that falls to zero (AutoRound, arXiv:2309.05516). Three things are different: the start is what GPTQ found,
not the nearest level; the sign is that of a running mean of gradients, because one batch's sign flips back many of the
codes that GPTQ had put at the edge of their cells; tokens count as much as :mod:`edgekit.quantize.curvature` says.
Steps of groups move as well where the format stores each as a float of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.engines.base import F32
from edgekit.errors import BadWeightsError
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.grids.scalar import Scalar, scalar, storable_steps, with_codes, with_steps

BATCH = 4
"""Sequences a step of the descent."""
_SPAN = 0.5
"""Levels that a latent position may move from where its weight lies, as in AutoRound."""
_RATE, _MEMORY = 0.1, 0.9
"""Twice the levels that a position moves whose gradient never turns; the running mean's share of the past."""
_STEP_RATE = 0.06
"""The first, of a group's step, relative to it."""
_INSIDE = 1e-3
"""How far inside the cell of its code, in levels, a position begins that GPTQ moved out of the weight's own cell."""
Forward = Callable[[int, Mapping[str, torch.Tensor]], torch.Tensor]
"""The block's output (1, T, hidden) for one sequence, by number, with the named weights (outputs, inputs)."""


@dataclass(frozen=True)
class Text:
    """What a block is fitted on."""

    targets: list[torch.Tensor]
    """(1, T, hidden) of each sequence: what the full-precision block says."""
    counts: list[torch.Tensor]
    """(T,) of each sequence: how much each token counts, of mean 1 over all."""

    @staticmethod
    def of(targets: list[torch.Tensor], weights: NDArray[np.float32] | None) -> Text:
        """With one weight for each token of all sequences, one behind the other; None: all the same."""
        lengths = [target.shape[1] for target in targets]
        if weights is None:
            return Text(targets, [torch.ones(length) for length in lengths])
        return Text(targets, list(torch.split(torch.from_numpy(weights), lengths)))

    def error(self, number: int, said: torch.Tensor) -> torch.Tensor:
        """Weighed squared error of one sequence, summed."""
        return ((said - self.targets[number]).float().square().sum(dim=-1)[0] * self.counts[number]).sum()


def learn(
    start: Mapping[str, Quantized],
    weights: Callable[[str], F32],
    text: Text,
    forward: Forward,
    *,
    iterations: int,
    seed: int = 0,
) -> dict[str, Quantized]:
    """The block's matrices with learned codes and steps, or `start` when nothing that was learned is better.

    Args:
        start: tensor name → the matrix as GPTQ rounded it. Formats that are not rounded weight by weight stay.
        weights: tensor name → full-precision weights (outputs, inputs).
        text: what the block should say.
        forward: the block.
        iterations: steps of descent.
        seed: of the order of sequences.

    Raises:
        BadWeightsError: the error is NaN or infinite.
    """
    places = {name: _Position.of(matrix, weights(name)) for name, matrix in start.items()}
    moving = {name: place for name, place in places.items() if place is not None}
    fixed = {name: _tensor(matrix) for name, matrix in start.items() if name not in moving}
    if not moving:
        return dict(start)
    _descend(moving, fixed, text, forward, iterations, seed)
    found = {name: moving[name].stored(matrix) if name in moving else matrix for name, matrix in start.items()}
    before, after = (_whole({n: _tensor(m) for n, m in mats.items()}, text, forward) for mats in (start, found))
    return found if after < before else dict(start)


def _descend(
    moving: Mapping[str, _Position],
    fixed: Mapping[str, torch.Tensor],
    text: Text,
    forward: Forward,
    iterations: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = len(text.targets)
    norm = float(sum(text.error(n, torch.zeros_like(t)) for n, t in enumerate(text.targets))) / count or 1.0
    order: list[int] = []
    with torch.enable_grad():
        for iteration in range(iterations):
            if len(order) < min(BATCH, count):
                order += torch.randperm(count, generator=generator).tolist()
            batch, order = order[:BATCH], order[BATCH:]
            drawn = {name: place.weights() for name, place in moving.items()}
            leaves = {name: tensor.detach().requires_grad_(True) for name, tensor in drawn.items()}
            for number in batch:
                loss = text.error(number, forward(number, {**fixed, **leaves})) / (norm * len(batch))
                if not bool(torch.isfinite(loss)):
                    raise BadWeightsError(
                        "the error of a block is NaN or infinite while its rounding is learned",
                        remedy="calibrate with another text, or build with --effort good",
                    )
                torch.autograd.backward(loss)
            rate = 1 - iteration / iterations
            for name, place in moving.items():
                place.move(leaves[name].grad, rate, iterations)


def _whole(matrices: Mapping[str, torch.Tensor], text: Text, forward: Forward) -> float:
    with torch.no_grad():
        return sum(float(text.error(n, forward(n, matrices)).double()) for n in range(len(text.targets)))


def _tensor(matrix: Quantized) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(get(matrix.grid).dequantize(matrix)))


class _Position:
    """A matrix whose codes and steps move. Arrays are (rows, groups, columns of a group), those of groups end in 1.

    A position counts levels from 0 and is linear between the edges of a level's cell, so that the levels of IQ4_NL,
    whose distances differ, are moved between like those of a uniform format.
    """

    def __init__(self, form: Scalar, matrix: Quantized, weights: F32) -> None:
        self.form, (self._rows, self._columns) = form, matrix.shape
        self._levels = torch.from_numpy(form.levels)
        self._steps, self._zeros, self._offsets = (
            torch.from_numpy(array)[:, :, None] for array in (form.steps, form.zeros, form.offsets)
        )
        self._factors = torch.ones_like(self._steps)
        codes = self._grouped(torch.from_numpy(matrix.fields["codes"].astype(np.int64) - form.first).view(matrix.shape))
        own = (self._grouped(torch.from_numpy(weights)) - self._offsets) / self._steps + self._zeros
        gaps = self._levels.diff()
        edges = torch.cat([
            self._levels[:1] - gaps[:1] / 2, self._levels[1:] - gaps / 2, self._levels[-1:] + gaps[-1:] / 2,
        ])  # fmt: skip
        within = (own - edges[codes]) / (edges[codes + 1] - edges[codes]) - 0.5
        within = within.nan_to_num_(0.0).clamp_(_INSIDE - 0.5, 0.5 - _INSIDE)  # a step of zero: any code will do
        self._start = codes + within
        self._moved, self._mean = torch.zeros_like(self._start), torch.zeros_like(self._start)
        self._basis, self._slope = torch.empty(0), torch.zeros_like(self._steps)

    @staticmethod
    def of(matrix: Quantized, weights: F32) -> _Position | None:
        """None for a format that is not rounded weight by weight."""
        form = scalar(matrix)
        return None if form is None else _Position(form, matrix, weights)

    def _grouped(self, array: torch.Tensor) -> torch.Tensor:
        missing = self.form.steps.shape[1] * self.form.group - self._columns
        whole = torch.nn.functional.pad(array, (0, missing)) if missing else array
        return whole.reshape(self._rows, -1, self.form.group)

    def _flat(self, array: torch.Tensor) -> torch.Tensor:
        return array.reshape(self._rows, -1)[:, : self._columns]

    def _index(self) -> torch.Tensor:
        return (self._start + self._moved).round_().clamp_(0, len(self._levels) - 1)

    def weights(self) -> torch.Tensor:
        """(outputs, inputs), as the file would hold them but for the rounding of the steps."""
        level = self._index()
        if self.form.uniform:
            level += self._levels[0]
        else:
            level = self._levels.index_select(0, level.int().flatten()).view_as(level)
        self._basis = level.sub_(self._zeros)
        return self._flat(self._basis * (self._steps * self._factors) + self._offsets)

    def move(self, gradient: torch.Tensor | None, rate: float, iterations: int) -> None:
        """One step against the gradient of :meth:`weights` (outputs, inputs); `rate` falls from 1 to 0."""
        if gradient is None:
            return
        given, direction = self._grouped(gradient), self._steps.sign()
        self._mean.lerp_(given, 1 - _MEMORY)
        self._moved.addcmul_(self._mean.sign(), direction, value=-_RATE * rate / iterations).clamp_(-_SPAN, _SPAN)
        if self.form.free:
            self._slope.lerp_((given * self._basis).sum(dim=2, keepdim=True), 1 - _MEMORY)
            self._factors.addcmul_(self._slope.sign(), direction, value=-_STEP_RATE * rate / iterations)

    def stored(self, matrix: Quantized) -> Quantized:
        """The matrix with the codes and steps as they are now."""
        if self.form.free:
            steps = storable_steps(matrix, (self._steps * self._factors)[:, :, 0].numpy())
            matrix = with_steps(matrix, np.where(np.isfinite(steps), steps, self.form.steps))
        return with_codes(matrix, self.form, self._flat(self._index()).numpy())
