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
_RATE, _MEMORY = 0.3, 0.9
"""Twice the levels that a position moves whose gradient never turns; the running mean's share of the past."""
_STEP_RATE = 0.02
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
    """A matrix whose codes and steps move."""

    def __init__(self, form: Scalar, matrix: Quantized, weights: F32) -> None:
        self.form, self._columns = form, matrix.shape[1]
        self._levels = torch.from_numpy(form.levels)
        self._middles = (self._levels[1:] + self._levels[:-1]) / 2
        self._steps = torch.from_numpy(form.steps.copy())
        self._factors = torch.ones_like(self._steps)
        step = self._spread(self._steps)
        zero = self._spread(torch.from_numpy(form.zeros))
        self._zero, self._offset = zero, self._spread(torch.from_numpy(form.offsets))
        codes = torch.from_numpy(matrix.fields["codes"].astype(np.int64)).reshape(matrix.shape) - form.first
        own = torch.where(step != 0, (torch.from_numpy(weights) - self._offset) / step + zero, self._levels[codes])
        edges = torch.cat([self._levels[:1] - 1, self._middles, self._levels[-1:] + 1])
        low, high = edges[codes], edges[codes + 1]
        self._gap = (high - low) if not form.uniform else torch.ones(())
        inside = _INSIDE * self._gap
        self._latent = torch.minimum(torch.maximum(own, low + inside), high - inside)
        self._low, self._high = self._latent - _SPAN * self._gap, self._latent + _SPAN * self._gap
        self._mean = torch.zeros_like(self._latent)

    @staticmethod
    def of(matrix: Quantized, weights: F32) -> _Position | None:
        """None for a format that is not rounded weight by weight."""
        form = scalar(matrix)
        return None if form is None else _Position(form, matrix, weights)

    def _spread(self, array: torch.Tensor) -> torch.Tensor:
        return array.repeat_interleave(self.form.group, dim=1)[:, : self._columns]

    def _index(self) -> torch.Tensor:
        if self.form.uniform:
            return (self._latent.round() - self._levels[0]).clamp_(0, len(self._levels) - 1).long()
        return torch.bucketize(self._latent, self._middles)

    def _level(self) -> torch.Tensor:
        return self._levels[self._index()]

    def weights(self) -> torch.Tensor:
        """(outputs, inputs), as the file would hold them but for the rounding of the steps."""
        return (self._level() - self._zero) * self._spread(self._steps * self._factors) + self._offset

    def move(self, gradient: torch.Tensor | None, rate: float, iterations: int) -> None:
        """One step against the gradient of the weights (outputs, inputs); `rate` falls from 1 to 0."""
        if gradient is None:
            return
        basis, step = self._level() - self._zero, self._spread(self._steps)
        self._mean.lerp_(gradient * step, 1 - _MEMORY)
        self._latent -= self._mean.sign() * self._gap * (_RATE * rate / iterations)
        torch.minimum(torch.maximum(self._latent, self._low), self._high, out=self._latent)
        if self.form.free:
            missing = self._steps.shape[1] * self.form.group - self._columns
            whole = torch.nn.functional.pad(gradient * basis * step, (0, missing))
            slope = whole.reshape(*self._steps.shape, self.form.group).sum(dim=2)
            self._factors -= slope.sign() * (_STEP_RATE * rate / iterations)

    def stored(self, matrix: Quantized) -> Quantized:
        """The matrix with the codes and steps as they are now."""
        if self.form.free:
            steps = storable_steps(matrix, (self._steps * self._factors).numpy())
            matrix = with_steps(matrix, np.where(np.isfinite(steps), steps, self.form.steps))
        return with_codes(matrix, self.form, self._index().numpy())
