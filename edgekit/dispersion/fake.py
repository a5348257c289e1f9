"""Fake quantization: a matrix computes with the weights that its number format can hold, and still learns.

The values are those of the very :class:`~edgekit.grids.base.Grid` that is exported, its codes and scales included, so
that what was trained is what is written, to the last bit but for the sign of zeros. Gradients pass the rounding as if
it were not there (straight through), except for weights beyond the format's range, which get none; steps learn by the
gradient of LSQ (Esser et al., "Learned step size quantization", arXiv:1902.08153): with v = s · (level - zero) +
offset, level the nearest one to r = (w - offset) / s + zero,

    ∂v/∂w = 1 where r is inside the range, else 0
    ∂v/∂s = level - r where r is inside the range, else level - zero

Formats whose steps are not floats of their own (K-quants) keep them, those without a code for each weight (IQ3, floats)
cannot be trained. A group whose step is zero, because its weights were, stays at its offset: nothing in it learns.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from edgekit.engines.base import F32
from edgekit.errors import BadWeightsError, GridError
from edgekit.grids.base import Quantized
from edgekit.grids.scalar import scalar, storable_steps, with_codes, with_steps


class FakeQuantized(torch.nn.Module):
    """A parametrization of a weight: the full-precision matrix in, what the format makes of it out.

    Args:
        start: the matrix as it is quantized at first; its codes are not kept, its steps, zeros and offsets are.
        transposed: whether the module stores (inputs, outputs), as GPT-2's do.
        learn: whether the steps are a parameter, where the format stores each as a float of its own.
        fixed: whether the codes stay and only the steps learn; the parameter is then what :meth:`own` makes of it.

    Raises:
        GridError: the format has no code for each weight.
    """

    def __init__(self, start: Quantized, *, transposed: bool = False, learn: bool = True, fixed: bool = False) -> None:
        super().__init__()
        form = scalar(start)
        if form is None:
            raise GridError(
                f"{start.grid} has no code of its own for each weight",
                expected="a format of levels and steps",
                remedy="train on another format of as many bits",
            )
        self._start, self._form, self._transposed, self._fixed = start, form, transposed, fixed
        self.steps = torch.nn.Parameter(_column(form.steps), requires_grad=learn and form.free)
        self.register_buffer("_levels", torch.from_numpy(form.levels), persistent=False)
        self.register_buffer("_zeros", _column(form.zeros), persistent=False)
        self.register_buffer("_offsets", _column(form.offsets), persistent=False)
        # LSQ's own balance between the size of a step's gradient and of a weight's (arXiv:1902.08153, section 2.2).
        self._share = 1 / math.sqrt(form.group * len(form.levels) / 2)

    _levels: torch.Tensor
    _zeros: torch.Tensor
    _offsets: torch.Tensor

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """See the class."""
        rows = weight.t() if self._transposed else weight
        step = self._stored_steps()
        if self._fixed:
            distance = self._grouped(rows)
        else:
            inside = self._position(rows, step).clamp(self._levels[0], self._levels[-1])
            distance = _passing(self._nearest(inside), inside) - self._zeros
        values = self._flat(distance * step + self._offsets)
        return values.t() if self._transposed else values

    @torch.no_grad()
    def own(self, weight: torch.Tensor) -> torch.Tensor:
        """What the parameter is to be for these weights, as the module stores them: with fixed codes level - zero."""
        if not self._fixed:
            return weight
        rows = weight.t() if self._transposed else weight
        found = self._flat(self._nearest(self._position(rows, self._stored_steps())) - self._zeros)
        return found.t() if self._transposed else found

    @torch.no_grad()
    def quantized(self, weight: torch.Tensor) -> Quantized:
        """Codes and scales whose weights are what :meth:`forward` gives for `weight`.

        Raises:
            BadWeightsError: a weight or step is NaN or infinite.
        """
        if not (bool(torch.isfinite(weight).all()) and bool(torch.isfinite(self.steps).all())):
            raise BadWeightsError(
                "a trained weight or step is NaN or infinite",
                expected="finite numbers",
                remedy="train with a lower rate, or take an earlier checkpoint",
            )
        rows = (weight.t() if self._transposed else weight).cpu()
        matrix, step = self._start, self._stored_steps().cpu()
        if self._form.free:
            matrix = with_steps(matrix, step[:, :, 0].numpy())
        if self._fixed:
            return matrix
        index = torch.bucketize(self._nearest(self._position(rows, step)), self._middles)
        return with_codes(matrix, self._form, self._flat(index).numpy())

    def _stored_steps(self) -> torch.Tensor:
        """As the file will hold them; the gradient passes that rounding, and is made smaller by LSQ's share."""
        if not self._form.free:
            return self.steps
        stored = storable_steps(self._start, self.steps.detach()[:, :, 0].cpu().numpy())
        stored = np.where(np.isfinite(stored), stored, self._form.steps)
        return _passing(_column(stored).to(self.steps.device), self.steps * self._share)

    def _position(self, rows: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Where the weights lie among the levels; a step of zero stands for the offset, whatever the code is."""
        safe = torch.where(step == 0, torch.ones_like(step), step)
        found = (self._grouped(rows) - self._offsets) / safe + self._zeros
        return torch.where(step == 0, self._zeros, found)

    @property
    def _middles(self) -> torch.Tensor:
        return (self._levels[1:] + self._levels[:-1]) / 2

    def _nearest(self, position: torch.Tensor) -> torch.Tensor:
        if self._form.uniform:
            return position.round().clamp(self._levels[0], self._levels[-1])
        return self._levels[torch.bucketize(position.detach(), self._middles)]

    def _grouped(self, rows: torch.Tensor) -> torch.Tensor:
        missing = self.steps.shape[1] * self._form.group - rows.shape[1]
        whole = torch.nn.functional.pad(rows, (0, missing)) if missing else rows
        return whole.reshape(rows.shape[0], -1, self._form.group)

    def _flat(self, groups: torch.Tensor) -> torch.Tensor:
        return groups.reshape(groups.shape[0], -1)[:, : self._start.shape[1]]


def _passing(value: torch.Tensor, through: torch.Tensor) -> torch.Tensor:
    """`value` to the last bit, with the gradient of `through`."""
    return value.detach() + (through - through.detach())


def _column(array: F32) -> torch.Tensor:
    """(rows, groups, 1)."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).clone()[:, :, None]


def attach(
    module: Any, start: Quantized, *, transposed: bool = False, learn: bool = True, fixed: bool = False
) -> FakeQuantized:
    """Let a linear module compute with fake-quantized weights; its own stay what is trained.

    Args:
        module: with a float32 `weight`.
        start: see :class:`FakeQuantized`.
        transposed: see :class:`FakeQuantized`.
        learn: see :class:`FakeQuantized`.
        fixed: see :class:`FakeQuantized`; the module's weights are to be those of `start` then.

    Raises:
        GridError: see :class:`FakeQuantized`; the module's weight is another one, or attached already.
    """
    shape = start.shape[::-1] if transposed else start.shape
    if tuple(module.weight.shape) != shape or module.weight.dtype != torch.float32:
        raise GridError(
            f"the module's weight is {tuple(module.weight.shape)} of {module.weight.dtype}",
            expected=f"{shape} of torch.float32, as the matrix that was quantized",
        )
    if torch.nn.utils.parametrize.is_parametrized(module, "weight"):
        raise GridError("the module computes with another weight than its own already", expected="one attach() each")
    made = FakeQuantized(start, transposed=transposed, learn=learn, fixed=fixed)
    with torch.no_grad():
        module.weight.copy_(made.own(module.weight).clone())
    torch.nn.utils.parametrize.register_parametrization(module, "weight", made)
    return made


def detach(module: Any) -> tuple[torch.Tensor, Quantized]:
    """End it: the module has its trained full-precision weights again.

    Returns:
        The fake-quantized weights as the module stores them, and their codes and scales.
    """
    (made,) = module.parametrizations.weight
    own = module.parametrizations.weight.original
    quantized: Quantized = made.quantized(own)
    values = module.weight.detach().clone()
    torch.nn.utils.parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    return values, quantized
