"""Part A's arms as data: what the twins have in common, and what each objective does otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edgekit.training.recipe import Objective

VOCABULARY = 4096
CONFIG: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip
"""Llama's shape, 3.4 M parameters; every matrix has rows of 256 or 512 weights, so that all formats fit."""
LENGTH, BATCH = 256, 8
"""Tokens of a sequence, sequences of a step."""
UNIT = 640
"""Steps of 2,048 tokens that a run of length 1.0 has before its rate falls."""
WARMUP, DECAY = 0.05, 0.2
"""Warm-up as a share of UNIT; steps in which the rate falls to zero, as a share of those before."""
AVERAGED, EVERY = 6, 0.025
"""LAWA: so many weights of the phase with a constant rate, taken at this distance, as a share of UNIT."""


@dataclass(frozen=True)
class Arm:
    """One way to train the twins."""

    name: str
    objective: Objective
    rate: float = 2e-3
    """AdamW's, betas 0.9 and 0.95, weight decay 0.1 of matrices, gradient norm at most 1."""
    branches: tuple[float, ...] = (0.4, 0.7, 1.0)
    """Lengths in UNITs, at each of which the rate falls to zero on a copy, which gives a whole training."""
    averaged: tuple[float, ...] = (0.7, 1.0)
    """Lengths at which LAWA's mean is judged as well."""


def _spread(weight: float, loss: str = "angular_spread") -> Objective:
    return Objective(
        cross_entropy=1.0, distillation=0.0, dispersion=weight, loss=loss, temperature=0.5, layers="late_half"
    )


_PLAIN = Objective(cross_entropy=1.0, distillation=0.0)
ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("ce", _PLAIN, branches=(0.4, 0.7, 1.0, 1.5, 2.0), averaged=(0.7, 1.0, 2.0)),
        Arm("spread-0.5", _spread(0.5)),
        Arm("spread-2", _spread(2.0)),
        Arm("decorrelation", _spread(0.5, "decorrelation")),
        Arm("ce-fast", _PLAIN, rate=4e-3),
        Arm("spread-0.5-long", _spread(0.5), branches=(1.5, 2.0), averaged=(2.0,)),
    )
}
"""In the order in which they are run: all seeds of one, then the next."""
MAIN = ("ce", "spread-0.5", "spread-2")
SEEDS = (0, 1, 2)


def described(arm: Arm) -> dict[str, Any]:
    """All that an arm's result depends on, for its record."""
    own = {"name": arm.name, "rate": arm.rate, "branches": arm.branches, "averaged": arm.averaged}
    common = {
        "config": dict(CONFIG), "length": LENGTH, "batch": BATCH, "unit": UNIT, "warmup": WARMUP, "decay": DECAY,
        "averages": AVERAGED, "average_every": EVERY,
    }  # fmt: skip
    return {**own, "objective": msgspec.to_builtins(arm.objective), **common}
