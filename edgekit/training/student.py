"""The model in training: which of its parameters learn, on which grids, how fast, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.dispersion.fake import attach
from edgekit.engines.base import F32
from edgekit.grids.base import Quantized
from edgekit.training.recipe import EndToEnd

_TINY = 1e-8
"""Rate where a tensor is all zeros: it may leave them."""


class Student:
    """A Hugging Face model whose matrices compute with what their formats can hold.

    Args:
        module: the model, float32, with the weights of `start` where only steps learn; its parameters are changed.
        spec: its description.
        start: tensor name → the matrix as training begins; a matrix that is not named is on no grid.
        end: what learns and how fast.

    Raises:
        GridError: a format has no code for each weight.
    """

    def __init__(self, module: Any, spec: Spec, start: Mapping[str, Quantized], end: EndToEnd) -> None:
        self.module, self._spec, self._end = module, spec, end
        tensors = {tensor.hf: tensor for tensor in spec.tensors}
        self._fakes = {
            name: attach(
                _module(module, name), matrix, transposed=tensors[name].rule.transposed, fixed=end.train == "steps"
            )
            for name, matrix in start.items()
        }
        self.groups = self._grouped(tensors)

    @property
    def on_grid(self) -> bool:
        """Whether anything is on a grid."""
        return bool(self._fakes)

    def _grouped(self, tensors: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
        """The optimizer's groups; what is in none does not learn."""
        free = {name for name, fake in self._fakes.items() if fake.steps.requires_grad}
        self.module.requires_grad_(False)
        groups = []
        for name, fake in self._fakes.items():
            size = float(fake.steps.detach().abs().median()) or _TINY
            if self._end.train == "all":
                groups.append(_group(self._own(name), self._end.code_rate * size))
            if name in free:
                groups.append(_group(fake.steps, self._end.step_rate * size))
        named = dict(self.module.named_parameters())
        for name, parameter in named.items():
            if "parametrizations" in name:
                continue
            matrix = tensors[name].rule.matrix if name in tensors else parameter.dim() > 1
            if not self._fakes:
                groups.append(_group(parameter, self._end.learning_rate, self._end.weight_decay if matrix else 0.0))
            elif not matrix:
                size = float(parameter.detach().abs().median()) or _TINY
                groups.append(_group(parameter, self._end.step_rate * size))
        return groups

    def _own(self, name: str) -> torch.nn.Parameter:
        found: torch.nn.Parameter = _module(self.module, name).parametrizations.weight.original
        return found

    def learning(self) -> dict[str, torch.nn.Parameter]:
        """Name → parameter, of all that learn."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def matrices(self) -> dict[str, Quantized]:
        """The matrices on grids as they are now.

        Raises:
            BadWeightsError: one is NaN or infinite.
        """
        return {name: fake.quantized(self._own(name)) for name, fake in self._fakes.items()}

    @torch.no_grad()
    def weights(self) -> dict[str, F32]:
        """Tensor name → what the model computes with, as Hugging Face stores it, of every tensor of the description."""
        found = {}
        for tensor in self._spec.tensors:
            if tensor.hf in self._fakes:
                value = _module(self.module, tensor.hf).weight
            else:
                value = self.module.get_parameter(tensor.hf)
            found[tensor.hf] = value.detach().cpu().numpy()
        return found


def _module(model: Any, name: str) -> Any:
    """The module whose weight has that name."""
    return model.get_submodule(name.removesuffix(".weight"))


def _group(parameter: torch.nn.Parameter, rate: float, decay: float = 0.0) -> dict[str, Any]:
    parameter.requires_grad_(True)
    return {"params": [parameter], "lr": rate, "full_rate": rate, "weight_decay": decay}
