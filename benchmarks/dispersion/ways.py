"""Ways to round the linear layers of a model, each the same for every model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.engines.base import Ids
from edgekit.engines.torch import TorchEngine
from edgekit.grids import get
from edgekit.quantize.blocks import Blocks
from edgekit.quantize.gptq import round_matrix
from edgekit.quantize.rounding import second_moment

Weights = dict[str, F32]
Biases = dict[str, torch.Tensor]


@dataclass
class Ways:
    """One model."""

    checkpoint: Checkpoint
    engine: TorchEngine
    calibration: Sequence[Ids]

    def __post_init__(self) -> None:
        linear = [tensor for tensor in self.checkpoint.spec.tensors if tensor.rule.kind == "linear"]
        self.own: Weights = {tensor.hf: self.checkpoint.read(tensor) for tensor in linear}

    def nearest(self, grid: str) -> Weights:
        """The nearest levels, steps searched by squared error."""
        return {name: get(grid).dequantize(get(grid).quantize(own)) for name, own in self.own.items()}

    def gptq(self, grid: str) -> Weights:
        """Block by block, each on what the rounded ones before it give; every token counts alike."""
        made: Weights = {}
        for layer, names, inputs, blocks in self._walk():
            moment = second_moment(inputs, None)
            for name in names:
                made[name] = get(grid).dequantize(round_matrix(self.own[name], moment, grid))
                blocks.put(layer, name, made[name])
        return made

    def biases(self, weights: Weights) -> Biases:
        """What rounding takes from the mean of each layer's output, on calibration text."""
        made: Biases = {}
        for layer, names, inputs, blocks in self._walk():
            for name in names:
                made[name] = torch.from_numpy(self.own[name] - weights[name]) @ inputs.mean(dim=0)
                blocks.put(layer, name, weights[name])
        return made

    def _walk(self) -> Iterator[tuple[int, list[str], torch.Tensor, Blocks]]:
        blocks = Blocks(self.engine.module, self.checkpoint.spec, self.calibration)
        for layer in range(self.checkpoint.spec.layers):
            with blocks.borrowed(layer):
                for names in blocks.groups(layer):
                    yield layer, names, blocks.inputs(layer, names[0]), blocks
                blocks.advance(layer)

    @contextmanager
    def changed(self, weights: Weights) -> Iterator[None]:
        """The model with other weights, until the block ends."""
        self.engine.replace(weights.items())
        try:
            yield
        finally:
            self.engine.replace((name, self.own[name]) for name in weights)
