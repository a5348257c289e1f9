"""Dispersion losses: what a layer's token vectors cost for pointing the same way.

Chen Liu et al., "Dispersion loss counteracts embedding condensation and improves generalization in small language
models", arXiv:2602.00217 (Table 1), and the authors' code, github.com/KrishnaswamyLab/LM-Dispersion. Where the two
differ, `form` says which is meant:

=================  =========================================  ==================================================
loss               paper                                      code (the default)
=================  =========================================  ==================================================
angular_spread     log Σ_{i≠j} exp(-D_ij / τ)                 the mean instead of the sum: another constant
orthogonalization  E_{i≠j} max(0, ½ - D_ij)²                  the same
l2_repel           log Σ_{i≠j} exp(-‖z_i - z_j‖² / τ) + λ‖Z‖²  mean over all pairs, i = j among them; λ times the mean
                                                              of the squared entries
decorrelation      Σ_{m≠n} Cov²_mn of features, each          mean squared correlation of *tokens*: each token's
                   standardized over the tokens               vector is standardized over the features
=================  =========================================  ==================================================

D_ij = arccos(cos(z_i, z_j)) / π is the angle between two tokens as a share of π. Its derivative is unbounded where two
vectors are parallel, so both angular losses clamp the cosine to [-1 + t, 1 - t]; beyond, the gradient is the one at the
boundary (straight through), and never zero. The code's constant 0.01 inside its exponentials, which no gradient sees,
is left out.

All losses compare tokens of one sequence with each other, never those of two, and are averaged over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from edgekit.errors import OptionError

Name = Literal["angular_spread", "orthogonalization", "l2_repel", "decorrelation"]
Form = Literal["code", "paper"]
_FLOOR = 1e-2
"""Added to a vector's norm before it is divided by it, as in the authors' code."""
_RIGHT_ANGLE = 0.5
"""As a share of π."""
_NORM_SHARE = 0.1
"""λ of l2_repel, as in the authors' code: the norm must not grow to make distances large."""


@dataclass(frozen=True)
class Shape:
    """The constants of a dispersion loss."""

    temperature: float = 1.0
    """τ: the smaller, the more the closest pairs count."""
    clamp: float = 0.25
    """t: cosines further than 1 - t from zero have the gradient of that boundary."""
    form: Form = "code"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise OptionError(f"a temperature of {self.temperature}", expected="a number above 0")
        if not 0 < self.clamp < 1:
            raise OptionError(f"a clamp of {self.clamp}", expected="a number between 0 and 1")
        if self.form not in get_args(Form):
            raise OptionError(f"a form {self.form}", expected=f"one of {', '.join(get_args(Form))}")


def angular_spread(states: torch.Tensor, shape: Shape = Shape()) -> torch.Tensor:
    """Log-mean-exp of minus the angles between a sequence's tokens, over τ: smaller is more dispersed.

    In [-1/τ, 0] in the code's form.

    Args:
        states: (batch, tokens, features) of one layer, at least two tokens.
        shape: its constants.

    Raises:
        OptionError: `states` is not three-dimensional, or has a single token.
    """
    _refuse_others(states)
    sums: torch.Tensor = _LogSumOfAngles.apply(_units(states), shape.clamp, shape.temperature)  # type: ignore[no-untyped-call]
    constant = 0.0 if shape.form == "paper" else math.log(states.shape[1] * (states.shape[1] - 1))
    return (sums - constant).mean()


def orthogonalization(states: torch.Tensor, shape: Shape = Shape()) -> torch.Tensor:
    """Mean squared shortfall of the tokens' angles from a right angle: in [0, ¼]. See :func:`angular_spread`."""
    return (_RIGHT_ANGLE - _off_diagonal(_angles(states, shape.clamp))).clamp(min=0).square().mean()


def l2_repel(states: torch.Tensor, shape: Shape = Shape()) -> torch.Tensor:
    """Log-mean-exp of minus the squared distances over τ, and a tenth of the mean squared entry.

    Unstable by its authors' own account: repulsion and norm have to balance. See :func:`angular_spread`.
    """
    _refuse_others(states)
    exponents = -_squared_distances(states) / shape.temperature
    if shape.form == "paper":
        spread, norm = torch.logsumexp(_off_diagonal(exponents), dim=1), states.square().sum(dim=(1, 2)).mean()
    else:
        spread = torch.logsumexp(exponents.flatten(1), dim=1) - 2 * math.log(states.shape[1])
        norm = states.square().mean()
    return spread.mean() + _NORM_SHARE * norm


def decorrelation(states: torch.Tensor, shape: Shape = Shape()) -> torch.Tensor:
    """Squared correlations of tokens (code) or of features (paper). See :func:`angular_spread`."""
    _refuse_others(states)
    if shape.form == "paper":
        rows = states.transpose(1, 2)
        return _off_diagonal(_correlations(rows)).square().sum(dim=1).mean()
    return _off_diagonal(_correlations(states)).square().mean()


LOSSES: Mapping[Name, Callable[[torch.Tensor, Shape], torch.Tensor]] = {
    "angular_spread": angular_spread,
    "orthogonalization": orthogonalization,
    "l2_repel": l2_repel,
    "decorrelation": decorrelation,
}


def _refuse_others(states: torch.Tensor) -> None:
    if states.dim() != 3 or states.shape[1] < 2 or states.shape[2] < 2:
        raise OptionError(
            f"states of shape {tuple(states.shape)} cannot be dispersed",
            expected="(batch, tokens, features) with two tokens and two features at least",
        )


class _LogSumOfAngles(torch.autograd.Function):
    """log Σ_{i≠j} exp(-D_ij / τ) of each sequence, (batch,), of unit vectors (batch, tokens, features).

    The derivative is written out: dD/dcos = -1 / (π √(1 - cos²)), at the boundary beyond the clamp, and pairs are
    symmetric, so that one product of matrices gives it. It is formed beside the value, which leaves nothing of
    tokens × tokens in memory for the layers that follow, and costs less than half of what autograd makes of it.
    """

    @staticmethod
    def forward(ctx: Any, unit: torch.Tensor, clamp: float, temperature: float) -> torch.Tensor:
        cosines = (unit @ unit.transpose(1, 2)).clamp_(clamp - 1, 1 - clamp)
        exponents = torch.arccos(cosines).mul_(-1 / (math.pi * temperature))
        exponents.diagonal(dim1=1, dim2=2).fill_(-math.inf)
        sums = torch.logsumexp(exponents, dim=(1, 2))
        if ctx.needs_input_grad[0]:
            slopes = cosines.square_().neg_().add_(1).rsqrt_()
            shares = exponents.sub_(sums[:, None, None]).exp_().mul_(slopes)
            ctx.save_for_backward((shares @ unit).mul_(2 / (math.pi * temperature)))
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (own,) = ctx.saved_tensors
        return own * gradient[:, None, None], None, None


def _units(states: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = states / (torch.linalg.vector_norm(states, dim=2, keepdim=True) + _FLOOR)
    return found


def _angles(states: torch.Tensor, clamp: float) -> torch.Tensor:
    """(batch, tokens, tokens) angles as shares of π, clamped where the derivative would be unbounded."""
    _refuse_others(states)
    unit = _units(states)
    cosines = unit @ unit.transpose(1, 2)
    inside = cosines.clamp(clamp - 1, 1 - clamp)
    return torch.arccos(cosines + (inside - cosines).detach()) / math.pi


def _squared_distances(states: torch.Tensor) -> torch.Tensor:
    # Not torch.cdist, whose derivative is undefined where two tokens are the same. Distances do not change when all are
    # moved, and what they have in common would cost digits.
    states = states - states.mean(dim=1, keepdim=True)
    squares = states.square().sum(dim=2)
    found = (squares[:, :, None] + squares[:, None, :] - 2 * states @ states.transpose(1, 2)).clamp(min=0)
    return found.masked_fill(torch.eye(states.shape[1], dtype=torch.bool, device=states.device), 0.0)


def _correlations(rows: torch.Tensor) -> torch.Tensor:
    """(batch, rows, rows) of rows (batch, rows, entries), each standardized; a constant row correlates with nothing."""
    centred = rows - rows.mean(dim=2, keepdim=True)
    # What is left of a constant row is rounding: no larger than this.
    noise = (16 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows, dim=2, keepdim=True)).detach()
    squares = centred.square().sum(dim=2, keepdim=True) + noise.square() + torch.finfo(rows.dtype).tiny
    unit: torch.Tensor = centred / squares.sqrt()
    return unit @ unit.transpose(1, 2)


def _off_diagonal(pairs: torch.Tensor) -> torch.Tensor:
    """(batch, n, n) → (batch, n (n - 1)) without the pairs of a row with itself."""
    batch, count, _ = pairs.shape
    # Dropping the first of n² entries and viewing the rest as rows of n + 1 puts the diagonal into the last column.
    return pairs.flatten(1)[:, 1:].view(batch, count - 1, count + 1)[:, :, :-1].reshape(batch, -1)
