"""A dispersion loss over a model's layers, as training uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from edgekit.dispersion.losses import LOSSES, Name, Shape
from edgekit.errors import OptionError

Layers = Literal["all", "last", "early_half", "late_half"]
_MOST = 256
"""Tokens that are compared with each other, as in the authors' code: 256² pairs a sequence and layer."""


def chosen(blocks: int, layers: Layers) -> range:
    """Numbers of the transformer blocks, from 0, that a selection means; of an odd number the late half has one more.

    Raises:
        OptionError: there is no block, or no such selection.
    """
    if blocks < 1 or layers not in get_args(Layers):
        raise OptionError(f"{layers} of {blocks} layers", expected=f"one of {', '.join(get_args(Layers))}")
    half = blocks // 2
    return {
        "all": range(blocks),
        "last": range(blocks - 1, blocks),
        "early_half": range(max(half, 1)),
        "late_half": range(half, blocks),
    }[layers]


@dataclass(frozen=True)
class Dispersion:
    """What is asked of the layers' outputs. The paper finds the late half as good as all or better (its Table 3)."""

    loss: Name = "angular_spread"
    layers: Layers = "late_half"
    tokens: int = _MOST
    """Of a longer sequence so many are drawn for each step, the same ones in all layers and sequences."""
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise OptionError(f"there is no dispersion loss {self.loss}", expected=f"one of {', '.join(LOSSES)}")
        if self.tokens < 2:
            raise OptionError(f"{self.tokens} tokens cannot be told apart", expected="two or more")

    def __call__(self, hidden: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """Mean of the loss over the selected layers.

        Args:
            hidden: a Hugging Face model's `hidden_states`, (batch, tokens, features) each: what enters the first
                block, which is left out, then what each block gives (the last one behind the final norm).
            generator: draws the tokens.

        Raises:
            OptionError: see :func:`chosen` and :mod:`edgekit.dispersion.losses`.
        """
        length = hidden[0].shape[1]
        places = torch.randperm(length, generator=generator)[: self.tokens].to(hidden[0].device)
        some = hidden[1:] if length <= self.tokens else [states[:, places] for states in hidden[1:]]
        losses = [LOSSES[self.loss](some[block], self.shape) for block in chosen(len(some), self.layers)]
        return torch.stack(losses).mean()
