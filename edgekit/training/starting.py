"""The matrices that a training on a grid begins with: rounded to nearest, or trained block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit.checkpoint.checkpoint import F32, Checkpoint, as_stored
from edgekit.checkpoint.spec import Spec
from edgekit.dispersion.blockwise import Settings, train_block
from edgekit.engines.base import Ids
from edgekit.engines.torch import TorchEngine
from edgekit.errors import GridError
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.grids.scalar import is_scalar
from edgekit.progress import Progress
from edgekit.quantize.blocks import Blocks
from edgekit.quantize.rounded import Place, load, save
from edgekit.training.recipe import Blockwise
from edgekit.training.record import Block
from edgekit.training.state import readable

_IMPORTANCE = 16
"""Sequences that the importance of inputs is measured on."""


@dataclass(frozen=True)
class Begin:
    """What a training on a grid needs to begin."""

    checkpoint: Checkpoint
    grids: Mapping[str, str]
    """Tensor name → number format."""
    blockwise: Blockwise | None
    sequences: Sequence[Ids]
    """Text: as many as `blockwise` asks for, or a few to measure importance on."""
    seed: int
    folder: Path
    """Where each block is kept when it is done, so that a killed run goes on at its block."""
    progress: Progress

    def run(self, engine: TorchEngine) -> tuple[dict[str, Quantized], tuple[Block, ...]]:
        """The matrices, and how each block's training went; nothing of the latter without one.

        Args:
            engine: the full-precision model, whose weights are as before at the end.

        Raises:
            GridError: a format has no code for each weight, or does not fit a matrix.
            BadWeightsError: a block's error becomes NaN or infinite.
            UnknownArchitectureError: the model is no list of blocks.
        """
        refuse_others(self.checkpoint.spec, self.grids)
        layers = [layer for layer in range(self.checkpoint.spec.layers) if self._names(layer)]
        if self.blockwise is None:
            layers_done: list[Block] = []
            missing = [layer for layer in layers if not self._file(layer).is_file()]
            squares = self._squares(engine) if missing else {}
            for layer in missing:
                self._keep(layer, self._nearest(layer, squares), None)
        else:
            layers_done = self._train(engine, self.blockwise, layers)
        found = {name: matrix for layer in layers for name, matrix in self._load(layer).items()}
        return found, tuple(layers_done)

    def nearest(self, engine: TorchEngine) -> Iterator[tuple[str, F32]]:
        """Tensor name → values rounded to nearest, as the model stores them: what is done without any training."""
        squares = self._squares(engine)
        for tensor in self.checkpoint.spec.tensors:
            if tensor.hf in self.grids:
                grid = get(self.grids[tensor.hf])
                values = grid.dequantize(grid.quantize(self.checkpoint.read(tensor), squares[tensor.hf]))
                yield tensor.hf, as_stored(tensor, values)

    def _train(self, engine: TorchEngine, blockwise: Blockwise, layers: Sequence[int]) -> list[Block]:
        settings = Settings(
            blockwise.iterations,
            min(blockwise.batch, len(self.sequences)),
            blockwise.rate,
            blockwise.step_rate,
            self.seed,
        )
        blocks = [self._told(layer) for layer in layers if self._file(layer).is_file()]
        if len(blocks) == len(layers):
            return blocks
        squares = self._squares(engine)
        title = f"train {len(layers)} blocks, each {blockwise.iterations} times on {settings.batch} sequences"
        with self.progress.step(title) as advance:
            trained, twins = (Blocks(engine.module, self.checkpoint.spec, self.sequences) for _ in range(2))
            for layer in range(self.checkpoint.spec.layers):
                if layer not in layers or self._file(layer).is_file():
                    self._pass(trained, twins, layer)
                else:
                    start = self._nearest(layer, squares)
                    made = train_block(trained, twins, layer, start, self._read, settings)
                    block = Block(layer=layer, before=made.before, after=made.after)
                    self._keep(layer, made.matrices, block)
                    self.progress.note(f"block {layer + 1}: relative error {block.before:.4f} → {block.after:.4f}")
                advance(layer + 1, self.checkpoint.spec.layers)
        return [self._told(layer) for layer in layers]

    def _pass(self, trained: Blocks, twins: Blocks, layer: int) -> None:
        """Take the text through a block that is done."""
        twins.advance(layer)
        with trained.borrowed(layer):
            for name, matrix in (self._load(layer) if self._file(layer).is_file() else {}).items():
                trained.put(layer, name, get(matrix.grid).dequantize(matrix))
            trained.advance(layer)

    def _squares(self, engine: TorchEngine) -> dict[str, F32]:
        some = self.sequences[:_IMPORTANCE]
        with self.progress.step(f"importance of every layer's inputs on {len(some)} sequences") as advance:
            return engine.input_squares(list(self.grids), some, advance)

    def _nearest(self, layer: int, squares: Mapping[str, F32]) -> dict[str, Quantized]:
        return {name: get(self.grids[name]).quantize(self._read(name), squares[name]) for name in self._names(layer)}

    def _names(self, layer: int) -> list[str]:
        return [
            tensor.hf for tensor in self.checkpoint.spec.tensors if tensor.layer == layer and tensor.hf in self.grids
        ]

    def _read(self, name: str) -> F32:
        return self.checkpoint.read(next(tensor for tensor in self.checkpoint.spec.tensors if tensor.hf == name))

    def _file(self, layer: int) -> Path:
        return self.folder / f"block-{layer:04d}.safetensors"

    def _keep(self, layer: int, matrices: Mapping[str, Quantized], block: Block | None) -> None:
        if block is not None:
            self._file(layer).with_suffix(".json").write_bytes(msgspec.json.encode(block))
        part = self._file(layer).with_suffix(".part")
        save(matrices, part, {})
        part.rename(self._file(layer))

    def _told(self, layer: int) -> Block:
        path = self._file(layer).with_suffix(".json")
        with readable(path):
            return msgspec.json.decode(path.read_bytes(), type=Block)

    def _load(self, layer: int) -> dict[str, Quantized]:
        shapes = {tensor.hf: (tensor.shape[0], tensor.shape[-1]) for tensor in self.checkpoint.spec.tensors}
        places = {name: Place(self._file(layer), self.grids[name], shapes[name]) for name in self._names(layer)}
        with readable(self._file(layer)):
            return {name: load(name, place) for name, place in places.items()}


def refuse_others(spec: Spec, grids: Mapping[str, str]) -> None:
    """Refuse formats that cannot be trained on, or that a matrix does not fit.

    Raises:
        GridError: names the format and the matrix.
    """
    for tensor in spec.tensors:
        if (name := grids.get(tensor.hf)) is None:
            continue
        if not is_scalar(name):
            raise GridError(
                f"{name} has no code of its own for each weight", expected="a format of levels and steps",
                remedy="train on another format of as many bits",
            )  # fmt: skip
        if reason := get(name).refusal((tensor.shape[0], tensor.shape[1])):
            raise GridError(f"{tensor.hf} cannot be on {name}: {reason}", remedy="train on another format")
