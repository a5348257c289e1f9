"""How well a block rounded on one text says what it should of another: choices of rounding, without a whole model.

    python -m benchmarks.held_out [MODEL | --dithered] --calibration-text FILE [--grid int4-sym-b32] [--layers 6,20]
        [--sequences 48,160] [--damping 0.01,0.05,0.1,0.3] [--rates 0.05,0.1,0.3,1] [--iterations 300]
        [--write docs/experiments/rounding.md]

One block at a time in a model that is in full precision before it. Rounded on the first sequences of the text (256
tokens each), judged on 24 others of its end: the block's weighed squared error, as learned rounding sees it, divided by
that of the block's own output. "fitted" is the same on the text that it was rounded on; what lies between the two is
what rounding learnt by heart.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks import dithered
from benchmarks._measure import machine
from benchmarks.coherence_table import replace
from edgekit import rounding
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.checkpoint.source import resolve
from edgekit.coherence.text import from_file
from edgekit.engines.base import Ids
from edgekit.engines.torch import TorchEngine
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.progress import Bars
from edgekit.quantize import learned
from edgekit.quantize.blocks import Blocks
from edgekit.quantize.curvature import token_weights
from edgekit.quantize.gptq import DAMPING, round_matrix
from edgekit.quantize.rounding import second_moment

HELD = 24
Matrices = Mapping[str, Quantized]


@dataclass(frozen=True)
class Block:
    """One block, the text before it, and what it should say."""

    checkpoint: Checkpoint
    blocks: Blocks
    layer: int
    weights: Mapping[str, F32]
    targets: list[torch.Tensor]
    fitted: int
    """Sequences that it is rounded on; the last HELD are those that it is judged on."""

    @cached_property
    def groups(self) -> list[list[str]]:
        """See Blocks.groups."""
        return self.blocks.groups(self.layer)

    def read(self, name: str) -> F32:
        """The full-precision weights."""
        return self.checkpoint.read(next(tensor for tensor in self.checkpoint.spec.tensors if tensor.hf == name))

    def gptq(self, grid: str, damping: float) -> dict[str, Quantized]:
        """Rounded as :func:`edgekit.quantize.rounding.round_block` does it."""
        found: dict[str, Quantized] = {}
        tokens = self.fitted * rounding.LENGTH
        with self.blocks.borrowed(self.layer):
            for group in self.groups:
                inputs = self.blocks.inputs(self.layer, group[0])[:tokens]
                for name in group:
                    moment = second_moment(inputs, self.weights[name][:tokens])
                    found[name] = round_matrix(self.read(name), moment, grid, damping=damping)
                    self.blocks.put(self.layer, name, get(grid).dequantize(found[name]))
        return found

    def learn(self, start: Matrices, rate: float, iterations: int) -> dict[str, Quantized]:
        """Learned rounding with another rate."""
        text = self._text(0, self.fitted)
        with patch.object(learned, "_RATE", rate):
            return learned.learn(start, self.read, text, self._forward, iterations=iterations)

    def errors(self, matrices: Matrices) -> tuple[float, float]:
        """Of the text that it was rounded on, and of the other, in parts of the output's square."""
        values = {name: torch.from_numpy(get(m.grid).dequantize(m)) for name, m in matrices.items()}
        count = len(self.targets)
        return self._error(values, 0, self.fitted), self._error(values, count - HELD, count)

    def _error(self, values: Mapping[str, torch.Tensor], begin: int, end: int) -> float:
        text = self._text(begin, end)
        with torch.no_grad():
            wrong = sum(float(text.error(n, self._forward(begin + n, values))) for n in range(end - begin))
            whole = sum(float(text.error(n, torch.zeros_like(target))) for n, target in enumerate(text.targets))
        return wrong / whole

    def _text(self, begin: int, end: int) -> learned.Text:
        places = slice(begin * rounding.LENGTH, end * rounding.LENGTH)
        return learned.Text.of(self.targets[begin:end], self.weights[self.groups[-1][-1]][places])

    def _forward(self, number: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.blocks.output(self.layer, number, weights)


def walked(
    checkpoint: Checkpoint, sequences: Sequence[Ids], fitted: int, layers: Sequence[int], bars: Bars
) -> Iterator[Block]:
    """The asked blocks, in order."""
    engine = TorchEngine(checkpoint.root)
    names = [tensor.hf for tensor in checkpoint.spec.tensors if tensor.rule.kind == "linear"]
    with bars.step("token weights") as advance:
        weights = token_weights(engine.module, names, sequences, 0, advance)
    blocks = Blocks(engine.module, checkpoint.spec, sequences)
    for layer in range(max(layers) + 1):
        if layer in layers:
            yield Block(checkpoint, blocks, layer, weights, blocks.outputs(layer), fitted)
        blocks.advance(layer)


def rows(block: Block, options: argparse.Namespace) -> Iterator[str]:
    """Lines of the table: GPTQ with each damping, and learned rounding after it with each rate."""
    for damping in options.damping:
        start = block.gptq(options.grid, damping)
        yield _line(block, f"GPTQ, damping {damping:g}", start)
    start = block.gptq(options.grid, DAMPING)
    for rate in options.rates:
        found = block.learn(start, rate, options.iterations)
        yield _line(block, f"learned, {options.iterations} steps, rate {rate:g}", found)


def _line(block: Block, what: str, matrices: Matrices) -> str:
    fitted, held = block.errors(matrices)
    return f"| {block.layer} | {block.fitted} | {what} | {1e6 * fitted:.0f} | {1e6 * held:.0f} |"


def main() -> None:
    """Print the table, and put it into a page when asked to."""
    options = _options()
    bars, host = Bars(), machine()
    checkpoint = dithered.cached() if options.dithered else resolve(options.model)
    tokenizer, most = load_tokenizer(checkpoint.root), max(options.sequences)
    text = from_file(
        options.calibration_text, tokenizer.encode, 2 * most + HELD, rounding.LENGTH, bos=tokenizer.bos_id
    ).sequences
    lines = ["| block | sequences | rounding | fitted, 10⁻⁶ | held out, 10⁻⁶ |", "|---|---|---|---|---|"]
    for count in options.sequences:
        given = [np.asarray(ids) for ids in (*text[:count], *text[-HELD:])]
        for block in walked(checkpoint, given, count, options.layers, bars):
            for line in rows(block, options):
                print(line, flush=True)
                lines.append(line)
    lines += ["", f"{checkpoint.name}, {options.grid}; measured on {host.cpu}."]
    if options.write:
        replace(options.write, "held-out-table", "\n".join(lines))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--dithered", action="store_true")
    parser.add_argument("--calibration-text", type=Path, required=True)
    parser.add_argument("--grid", default="int4-sym-b32")
    parser.add_argument("--layers", type=_integers, default=[6, 20])
    parser.add_argument("--sequences", type=_integers, default=[48, 160])
    parser.add_argument("--damping", type=_floats, default=[0.01, 0.05, 0.1, 0.3])
    parser.add_argument("--rates", type=_floats, default=[0.05, 0.1, 0.3, 1.0])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--write", type=Path)
    return parser.parse_args()


def _integers(given: str) -> list[int]:
    return [int(part) for part in given.split(",")]


def _floats(given: str) -> list[float]:
    return [float(part) for part in given.split(",")]


if __name__ == "__main__":
    main()
