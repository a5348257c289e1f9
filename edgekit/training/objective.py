"""What training makes small: cross-entropy, distance from the full-precision parent, dispersion; each with a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch

from edgekit.dispersion.layers import Dispersion, Layers
from edgekit.dispersion.losses import Name, Shape
from edgekit.training.recipe import Objective


@dataclass(frozen=True)
class Loss:
    """Of one batch."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor]
    """As in :class:`edgekit.training.record.Point`, detached."""


class Measure:
    """The loss of a batch.

    Args:
        objective: parts and weights.
        parent: the full-precision model; needed where `distillation` has a weight.
        half: whether both multiply in bfloat16; losses are float32 all the same.

    Raises:
        OptionError: no such dispersion loss, layers or temperature.
    """

    def __init__(self, objective: Objective, parent: Any | None, *, half: bool = False) -> None:
        self._objective, self._parent, self._half = objective, parent, half
        self._dispersion = dispersion(objective) if objective.dispersion else Dispersion()

    def __call__(self, model: Any, ids: torch.Tensor, generator: torch.Generator) -> Loss:
        """The loss on sequences (batch, tokens); `generator` draws the tokens that are dispersed."""
        objective = self._objective
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._half):
            said = model(input_ids=ids, use_cache=False, output_hidden_states=objective.dispersion > 0)
        parts: dict[str, torch.Tensor] = {}
        if objective.cross_entropy > 0:
            parts["cross_entropy"] = cross_entropy(said.logits, ids)
        if objective.distillation > 0:
            if self._parent is None:
                raise ValueError("distillation needs the parent")
            with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16, enabled=self._half):
                wanted = self._parent(input_ids=ids, use_cache=False).logits
            parts["distillation"] = divergence(said.logits, wanted)
        if objective.dispersion > 0:
            parts["dispersion"] = self._dispersion([states.float() for states in said.hidden_states], generator)
        total = torch.stack([getattr(objective, name) * part for name, part in parts.items()]).sum()
        return Loss(total, {name: part.detach() for name, part in parts.items()})


def dispersion(objective: Objective) -> Dispersion:
    """The dispersion loss of an objective.

    Raises:
        OptionError: there is no such loss, or its temperature is none.
    """
    return Dispersion(
        loss=cast("Name", objective.loss), layers=cast("Layers", objective.layers),
        shape=Shape(temperature=objective.temperature),
    )  # fmt: skip


def cross_entropy(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean over the predicted tokens, nats: logits (batch, T, vocabulary), ids (batch, T)."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def divergence(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean KL(wanted ‖ said) over all positions, nats: (batch, T, vocabulary) each."""
    said, own = (torch.log_softmax(each.float().flatten(0, 1), dim=-1) for each in (logits, wanted))
    return torch.nn.functional.kl_div(said, own, reduction="batchmean", log_target=True)
