"""Block-wise training on a grid: each transformer block against its full-precision twin, for small machines.

One block at a time is in training, all of its weights and the steps of its format, so that the memory is one block's
whatever the model's depth (block-wise training of all parameters, then of the steps end to end: EfficientQAT,
arXiv:2407.11062). The block reads what the *trained* blocks before it give and is to say what its twin says of what
the *full-precision* blocks before it give: what was lost before is made up for as far as that goes. Each token's error
counts relative to the size of what the twin says of it; otherwise the few tokens with massive activations would be all
that counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from edgekit.dispersion.fake import FakeQuantized
from edgekit.engines.base import F32
from edgekit.errors import BadWeightsError, OptionError
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.quantize.blocks import Blocks

_JUDGED = 64
"""Sequences that a block is judged on before and after."""
Read = Callable[[str], F32]
"""Tensor name → full-precision weights (outputs, inputs)."""


@dataclass(frozen=True)
class Settings:
    """How a block is trained."""

    iterations: int = 48
    batch: int = 4
    """Sequences of an iteration."""
    rate: float = 0.02
    """Of a weight, in median steps of its matrix; falls to zero along a cosine."""
    step_rate: float = 0.004
    """Of a step, in parts of the matrix's median step."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch < 1:
            raise OptionError("a block is trained for no iteration or on no sequence", expected="at least one of each")
        if not all(math.isfinite(rate) and rate >= 0 for rate in (self.rate, self.step_rate)):
            raise OptionError("a rate is negative or no number", expected="0 or more")


@dataclass(frozen=True)
class Trained:
    """One block's matrices after training."""

    matrices: dict[str, Quantized]
    before: float
    """Mean relative error of a token's output as the block was rounded at first."""
    after: float


def train_block(
    blocks: Blocks, twins: Blocks, layer: int, start: Mapping[str, Quantized], read: Read, settings: Settings
) -> Trained:
    """Train one block; both texts have then passed it, the one through the trained block, the other through the twin.

    Args:
        blocks: the text as the trained blocks before `layer` give it.
        twins: the same text as the full-precision blocks give it, over the same model.
        layer: the block's number.
        start: tensor name → the matrix as it is rounded at first, for every matrix of the block; its format is what is
            trained on.
        read: the full-precision weights, from which training starts.
        settings: how long and how fast.

    Returns:
        What training made of the matrices, or `start` when that is no better.

    Raises:
        BadWeightsError: the error is NaN or infinite.
        GridError: a format has no code for each weight.
    """
    targets = twins.advance(layer)
    judged = min(len(targets), _JUDGED)
    weights = {name: torch.nn.Parameter(torch.from_numpy(read(name)).clone()) for name in start}
    fakes = {name: FakeQuantized(matrix) for name, matrix in start.items()}

    def error(number: int, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        said, wanted = blocks.output(layer, number, values).float(), targets[number]
        return ((said - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=1e-12)).mean()

    before = _whole(error, {name: _values(matrix) for name, matrix in start.items()}, judged)
    _descend(error, weights, fakes, len(targets), settings)
    found = {name: fakes[name].quantized(weight.detach()) for name, weight in weights.items()}
    after = _whole(error, {name: _values(matrix) for name, matrix in found.items()}, judged)
    if not after < before:  # NaN, too
        found, after = dict(start), before
    with blocks.borrowed(layer):
        for name, matrix in found.items():
            blocks.put(layer, name, get(matrix.grid).dequantize(matrix))
        blocks.advance(layer)
    return Trained(found, before, after)


def _descend(
    error: Callable[[int, Mapping[str, torch.Tensor]], torch.Tensor],
    weights: Mapping[str, torch.nn.Parameter],
    fakes: Mapping[str, FakeQuantized],
    count: int,
    settings: Settings,
) -> None:
    groups = []
    for name, weight in weights.items():
        size = float(fakes[name].steps.detach().abs().median()) or 1e-8
        groups.append({"params": [weight], "lr": settings.rate * size})
        if fakes[name].steps.requires_grad:
            groups.append({"params": [fakes[name].steps], "lr": settings.step_rate * size})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations)
    generator = torch.Generator().manual_seed(settings.seed)
    order: list[int] = []
    for _ in range(settings.iterations):
        if len(order) < settings.batch:
            order += torch.randperm(count, generator=generator).tolist()
        batch, order = order[: settings.batch], order[settings.batch :]
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            values = {name: fakes[name](weight) for name, weight in weights.items()}
            # Each sequence by itself up to the fake weights, whose gradients are gathered there: one graph at a time.
            leaves = {name: value.detach().requires_grad_(True) for name, value in values.items()}
            for number in batch:
                loss = error(number, leaves) / len(batch)
                if not bool(torch.isfinite(loss)):
                    raise BadWeightsError(
                        "the error of a block in training is NaN or infinite",
                        expected="a falling error",
                        remedy="train with a lower rate, or on other text",
                    )
                torch.autograd.backward(loss)
            used = [name for name in values if leaves[name].grad is not None]
            torch.autograd.backward([values[name] for name in used], [leaves[name].grad for name in used])
        optimizer.step()
        falling.step()


def _values(matrix: Quantized) -> torch.Tensor:
    return torch.from_numpy(get(matrix.grid).dequantize(matrix))


def _whole(
    error: Callable[[int, Mapping[str, torch.Tensor]], torch.Tensor], values: Mapping[str, torch.Tensor], count: int
) -> float:
    with torch.no_grad():
        return sum(float(error(number, values)) for number in range(count)) / count
