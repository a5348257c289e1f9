"""One pass of the model in training: its batch, its loss and gradient, what can go wrong, and judging."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edgekit.engines.base import Ids
from edgekit.errors import OutOfMemoryError, TrainingError, memory_shortage
from edgekit.quantize.processor import bfloat16
from edgekit.training.objective import cross_entropy, divergence
from edgekit.training.record import HeldOut, Point

_DIVERGED, _SMOOTH, _ROOM = 2.0, 10, 0.5
"""A mean loss of so many steps that is so many times the first such mean, and so many nats above it, has diverged."""


def has_bfloat16() -> bool:
    """Whether what trains multiplies bfloat16 by itself."""
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else bfloat16()


def refuse_nan(parts: Mapping[str, float], step: int) -> None:
    """Stop where a part of the loss is no number.

    Raises:
        TrainingError: says which part.
    """
    wrong = [name for name, value in parts.items() if not math.isfinite(value)]
    if wrong:
        raise TrainingError(
            f"the loss is NaN or infinite in step {step + 1} ({' and '.join(wrong)})",
            expected="a finite loss",
            remedy="train with a lower rate or other weights of the loss; what was kept before stays for --restart",
        )


def refuse_infinite(learning: Mapping[str, torch.Tensor], step: int) -> None:
    """Stop where a weight is no number.

    Raises:
        TrainingError: names it.
    """
    for name, parameter in learning.items():
        if not bool(torch.isfinite(parameter).all()):
            raise TrainingError(
                f"{name} is NaN or infinite after {step} steps",
                expected="finite weights",
                remedy="train with a lower rate; what was kept before stays for --restart",
            )


def without_dropout(module: Any) -> None:
    """Let the model in training say what it says otherwise: its parent is asked without dropout."""
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "attention_dropout", None), float):
            part.attention_dropout = 0.0


def refuse_divergence(points: Sequence[Point]) -> None:
    """Stop where the loss climbs instead of falling.

    Raises:
        TrainingError: the mean of the last steps is far above that of the first.
    """
    if len(points) < 2 * _SMOOTH:
        return
    parts = points[:_SMOOTH], points[-_SMOOTH:]
    first, last = (math.fsum(point.loss for point in part) / _SMOOTH for part in parts)
    if last > first + _ROOM and last > first * _DIVERGED:
        raise TrainingError(
            f"the training diverges: the loss was {first:.3g} in its first {_SMOOTH} steps and is {last:.3g} now",
            expected="a falling loss",
            remedy="train with a lower rate",
        )


def fitting(batch: int, run: Callable[[int], Any]) -> Any:
    """`run(batch)`; where memory runs short, find out what would fit.

    Raises:
        OutOfMemoryError: says the largest half, quarter, … of the batch that fits.
    """
    try:
        return run(batch)
    except Exception as error:
        if memory_shortage(error) is None:
            raise
    fits = batch // 2
    while fits:
        try:
            run(fits)
            break
        except Exception as error:
            if memory_shortage(error) is None:
                raise
        fits //= 2
    raise OutOfMemoryError(
        f"a batch of {batch} sequences does not fit into memory",
        expected=f"a batch of {fits}, which does" if fits else "room for a single one, which does not fit either",
        remedy=f"give --batch {fits} --accumulate {-(-batch // fits)}" if fits
        else "give --gradient-checkpointing or a shorter --length, or train block by block",
    )  # fmt: skip


@torch.no_grad()
def judged(model: Any, parent: Any | None, held: Sequence[Ids], step: int) -> HeldOut:
    """The model on held-out sequences, in evaluation mode and float32; no KL without a parent."""
    own, wrong, tokens = 0.0, 0.0, 0
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    for sequence in held:
        ids = torch.from_numpy(np.ascontiguousarray(sequence))[None].to(device)
        said = model(input_ids=ids, use_cache=False).logits
        own += float(cross_entropy(said, ids)) * (len(sequence) - 1)
        if parent is not None:
            wrong += float(divergence(said[:, :-1], parent(input_ids=ids, use_cache=False).logits[:, :-1])) * (
                len(sequence) - 1
            )
        tokens += len(sequence) - 1
    model.train(training)
    return HeldOut(step=step, divergence=None if parent is None else wrong / tokens, cross_entropy=own / tokens)
