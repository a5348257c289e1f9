"""What a number format costs, with and without calibration: KL divergence of fake-quantized weights in torch.

    python -m benchmarks.rounding [MODEL] [--text FILE] [--write docs/experiments/importance.md]

Only the linear layers are quantized, the embedding stays in full precision, so that formats are compared and not
plans. Activations stay in float32: what int8 activations add is the report's "activation cost". The calibration text is
written by the model itself; the evaluation text is other text of the model's own, and --text FILE beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks._measure import machine
from benchmarks.coherence_table import replace
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.checkpoint.source import resolve
from edgekit.coherence.distribution import kl_full
from edgekit.coherence.text import from_file
from edgekit.engines.base import Ids
from edgekit.engines.torch import TorchEngine
from edgekit.grids import get
from edgekit.options import Options
from edgekit.original import calibrate, make_texts
from edgekit.progress import Bars
from edgekit.quantize.importance import Importance

GRIDS = ("IQ4_NL", "Q4_0", "int4-sym-b32", "int4-asym-b32", "int3-sym-b32", "int3-asym-b32")


def weights(checkpoint: Checkpoint, grid: str, importance: Importance | None) -> Iterator[tuple[str, F32]]:
    """Linear layers rounded to the grid."""
    for tensor in checkpoint.spec.tensors:
        if tensor.rule.kind == "linear":
            quantized = get(grid).quantize(checkpoint.read(tensor), (importance or {}).get(tensor.hf))
            yield tensor.hf, get(grid).dequantize(quantized)


def divergence(engine: TorchEngine, sequences: list[Ids], originals: list[F32]) -> float:
    """Mean KL divergence in nats."""
    return float(
        np.concatenate([kl_full(p, engine.logits(ids)) for ids, p in zip(sequences, originals, strict=True)]).mean()
    )


def rows(checkpoint: Checkpoint, text: Path | None, options: Options) -> Iterator[str]:
    """Lines of the Markdown table."""
    engine, tokenizer, bars = TorchEngine(checkpoint.root), load_tokenizer(checkpoint.root), Bars()
    texts = make_texts(lambda: engine, tokenizer, options, bars)
    importance = calibrate(engine, checkpoint, texts, bars)
    evaluation: dict[str, list[Ids]] = {"the model's own text": list(texts.evaluation.sequences)}
    if text:
        sequences = from_file(text, tokenizer.encode, 6, 256, bos=None).sequences
        evaluation[f"{text.name} (6 × 256 tokens)"] = list(sequences)
    originals: Mapping[str, list[F32]] = {n: [engine.logits(ids) for ids in s] for n, s in evaluation.items()}
    yield "| format | " + " | ".join(f"{n}: plain | calibrated" for n in evaluation) + " |"
    yield "|---" * (1 + 2 * len(evaluation)) + "|"
    for grid in GRIDS:
        cells: dict[str, list[str]] = {name: [] for name in evaluation}
        for given in (None, importance):
            with bars.step(f"{grid}{'' if given is None else ', calibrated'}"):
                engine.replace(weights(checkpoint, grid, given))
                for name, sequences_ in evaluation.items():
                    cells[name].append(f"{divergence(engine, sequences_, originals[name]):.3f}")
        yield f"| {grid} | " + " | ".join(" | ".join(pair) for pair in cells.values()) + " |"


def main() -> None:
    """Print the table, and put it into a page when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    lines = list(rows(resolve(arguments.model), arguments.text, Options()))
    table = "\n".join(lines)
    print(table)
    if arguments.write:
        host = machine()
        replace(arguments.write, "rounding-table", f"{table}\n\nMeasured on {host.cpu}, {host.physical_cores} cores.")


if __name__ == "__main__":
    main()
