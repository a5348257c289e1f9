"""What a number format costs, and what rounding makes of it: KL divergence of fake-quantized weights in torch.

    python -m benchmarks.rounding [MODEL] [--dithered] [--text FILE] [--calibration-text FILE]
        [--grids IQ4_NL,int4-sym-b32] [--write docs/experiments/rounding.md]

Only the linear layers are quantized, the embedding stays in full precision, so that formats are compared and not
plans. Activations stay in float32: what int8 activations add is the report's "activation cost". The calibration text is
written by the model itself; the evaluation text is other text of the model's own, and --text FILE beside it. --dithered
takes the copy of the demo that lies on no 4-bit grid (benchmarks/dithered.py). Columns:

    nearest         codes and scales that make the weights' squared error small
    importance      the same, each input weighed by its mean square (--effort fast)
    GPTQ            each layer's output, blocks one after the other
    token weights   GPTQ with each token weighed by how much it matters to the prediction (--effort good)
    real text       the same, calibrated on --calibration-text instead of text of the model's own
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import dithered
from benchmarks._measure import machine
from benchmarks.coherence_table import replace
from edgekit import rounding
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.checkpoint.source import resolve
from edgekit.coherence.distribution import kl_full
from edgekit.coherence.text import from_file, self_generated, starts
from edgekit.engines.base import Ids
from edgekit.engines.torch import TorchEngine
from edgekit.grids import get
from edgekit.options import Options
from edgekit.original import calibrate, make_texts
from edgekit.progress import Bars
from edgekit.quantize.blocks import Blocks
from edgekit.quantize.curvature import token_weights
from edgekit.quantize.importance import Importance
from edgekit.quantize.rounding import round_block

GRIDS = ("Q5_0", "IQ4_NL", "Q4_0", "int4-sym-b32", "int4-asym-b32", "int3-sym-b32")
Weights = Iterator[tuple[str, F32]]


def nearest(checkpoint: Checkpoint, grid: str, importance: Importance | None) -> Weights:
    """Linear layers rounded to the grid, each weight by itself."""
    for tensor in checkpoint.spec.tensors:
        if tensor.rule.kind == "linear":
            quantized = get(grid).quantize(checkpoint.read(tensor), (importance or {}).get(tensor.hf))
            yield tensor.hf, get(grid).dequantize(quantized)


def by_blocks(
    checkpoint: Checkpoint, engine: TorchEngine, grid: str, sequences: Sequence[Ids], weights: Mapping[str, F32]
) -> Weights:
    """Linear layers rounded to the grid, block after block."""
    tensors = {tensor.hf: tensor for tensor in checkpoint.spec.tensors if tensor.rule.kind == "linear"}
    blocks = Blocks(engine.module, checkpoint.spec, sequences)
    for layer in range(checkpoint.spec.layers):
        grids = {name: grid for name, tensor in tensors.items() if tensor.layer == layer}
        found = round_block(blocks, layer, grids, lambda name: checkpoint.read(tensors[name]), weights)
        for name, quantized in found.items():
            yield name, get(grid).dequantize(quantized)


def divergence(engine: TorchEngine, sequences: Sequence[Ids], originals: Sequence[F32]) -> float:
    """Mean KL divergence in nats."""
    return float(
        np.concatenate([kl_full(p, engine.logits(ids)) for ids, p in zip(sequences, originals, strict=True)]).mean()
    )


@dataclass(frozen=True)
class Lab:
    """The model, its original logits, and ways to round it."""

    checkpoint: Checkpoint
    engine: TorchEngine
    evaluation: Mapping[str, Sequence[Ids]]
    originals: Mapping[str, Sequence[F32]]
    ways: Mapping[str, Callable[[str], Weights]]

    def row(self, grid: str, bars: Bars) -> str:
        """A line of the table: for each text and way the divergence, and what the ways took."""
        own = [(t.hf, self.checkpoint.read(t)) for t in self.checkpoint.spec.tensors if t.rule.kind == "linear"]
        cells: list[list[str]] = [[] for _ in self.evaluation]
        seconds = []
        for name, way in self.ways.items():
            with bars.step(f"{grid}, {name}"):
                begin = time.process_time()
                rounded = list(way(grid))
                seconds.append(time.process_time() - begin)
                self.engine.replace(rounded)
                for place, (text, sequences) in zip(cells, self.evaluation.items(), strict=True):
                    place.append(f"{divergence(self.engine, sequences, self.originals[text]):.3f}")
                self.engine.replace(own)
        return f"| {grid} | " + " | ".join(cell for place in cells for cell in place) + f" | {seconds[-1]:.0f} s |"


def lab(checkpoint: Checkpoint, text: Path | None, calibration: Path | None, bars: Bars) -> Lab:
    """Everything that all formats share."""
    engine, tokenizer = TorchEngine(checkpoint.root), load_tokenizer(checkpoint.root)
    texts = make_texts(lambda: engine, tokenizer, Options(), bars)
    importance = calibrate(engine, checkpoint, texts, bars)
    evaluation: dict[str, Sequence[Ids]] = {"own text": texts.evaluation.sequences}
    if text:
        evaluation[text.name] = from_file(text, tokenizer.encode, 6, 256, bos=None).sequences
    beginnings = [ids[:1] for ids in starts(rounding.SEQUENCES["good"], tokenizer.bos_id, tokenizer.encode)]
    with bars.step("calibration text") as advance:
        rows = engine.sample_batch([int(ids[0]) for ids in beginnings], rounding.LENGTH, 1 << 16, advance)
    own = self_generated(lambda _b, _l, _s: list(rows), beginnings, rounding.LENGTH, 0, engine.vocab_size).sequences
    ways: dict[str, Callable[[str], Weights]] = {
        "nearest": lambda grid: nearest(checkpoint, grid, None),
        "importance": lambda grid: nearest(checkpoint, grid, importance),
        "GPTQ": lambda grid: by_blocks(checkpoint, engine, grid, own, {}),
        "token weights": _weighed(checkpoint, engine, own, bars),
    }
    if calibration:
        real = from_file(calibration, tokenizer.encode, rounding.SEQUENCES["good"], rounding.LENGTH, bos=None).sequences
        ways["real text"] = _weighed(checkpoint, engine, real, bars)
    originals = {name: [engine.logits(ids) for ids in sequences] for name, sequences in evaluation.items()}
    return Lab(checkpoint, engine, evaluation, originals, ways)


def _weighed(
    checkpoint: Checkpoint, engine: TorchEngine, sequences: Sequence[Ids], bars: Bars
) -> Callable[[str], Weights]:
    names = [tensor.hf for tensor in checkpoint.spec.tensors if tensor.rule.kind == "linear"]
    with bars.step("token weights") as advance:
        weights = token_weights(engine.module, names, sequences, 0, advance)
    return lambda grid: by_blocks(checkpoint, engine, grid, sequences, weights)


def main() -> None:
    """Print the table, and put it into a page when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--dithered", action="store_true")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--calibration-text", type=Path)
    parser.add_argument("--grids", default=",".join(GRIDS))
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    bars = Bars()
    made = lab(
        dithered.cached() if arguments.dithered else resolve(arguments.model), arguments.text,
        arguments.calibration_text, bars,
    )  # fmt: skip
    heads = [f"{text}: {way}" for text in made.evaluation for way in made.ways]
    lines = ["| format | " + " | ".join([*heads, "processor time"]) + " |", "|---" * (len(heads) + 2) + "|"]
    for grid in arguments.grids.split(","):
        lines.append(made.row(grid, bars))
        print(lines[-1], flush=True)
    if arguments.write:
        host, table = machine(), "\n".join(lines)
        replace(arguments.write, "rounding-table", f"{table}\n\nMeasured on {host.cpu}, {host.physical_cores} cores.")


if __name__ == "__main__":
    main()
