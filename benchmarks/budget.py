"""How well a sensitivity map predicts: plans under a budget, their predicted KL divergence against the true one.

    python -m benchmarks.budget [MODEL] [--size 80 --size 92.5 …] [--sensitivity FILE] [--fast Q5_0 …]
                                [--write docs/quantization.md]

GGUF, nearest rounding with importance, weights dequantized into torch: what int8 activations add is the report's
"activation cost". The true divergence is that of the whole vocabulary on the model's own evaluation text, which shares
no sequence with the calibration text that the map was measured on. "alone" is one format for every matrix.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from benchmarks._measure import machine
from benchmarks.coherence_table import replace as replace_in_page
from edgekit.building import sensitivity_of
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.checkpoint.source import resolve
from edgekit.coherence.distribution import kl_full
from edgekit.engines.torch import TorchEngine
from edgekit.errors import BudgetError
from edgekit.grids import get
from edgekit.options import Budget, Options
from edgekit.original import calibrate, make_texts
from edgekit.progress import Bars
from edgekit.quantize.budgeted import plan_of_grids, plan_under
from edgekit.quantize.groups import groups
from edgekit.quantize.importance import Importance
from edgekit.quantize.plan import Plan
from edgekit.refining import allot
from edgekit.targets import Target, load

UNIFORM = ("IQ4_NL", "Q4_0", "Q8_0")


def _weights(checkpoint: Checkpoint, plan: Plan, importance: Importance) -> Iterator[tuple[str, F32]]:
    for entry in plan.entries:
        if entry.tensor.rule.matrix:
            grid = get(entry.grid)
            rounded = grid.dequantize(grid.quantize(checkpoint.read(entry.tensor), importance.get(entry.tensor.hf)))
            yield entry.tensor.hf, rounded.T if entry.tensor.rule.transposed else rounded


def _plans(checkpoint: Checkpoint, target: Target, sizes: Sequence[float], options: Options) -> Iterator[Plan]:
    found = sensitivity_of(checkpoint, "gguf", options, Bars(), target)
    allotment = allot(checkpoint, target, "gguf", found)
    by_name = {group.tensors: group for group in found.groups}
    own = groups(checkpoint.spec, "gguf")
    for grid in UNIFORM:
        if all(group.fits(grid) for group in own):
            plan = plan_of_grids(checkpoint.spec, target, "gguf", {name: grid for g in own for name in g.names})
            predicted = sum(by_name[group.names].damage(grid) for group in own)
            yield replace(plan, budget=f"{grid} alone", predicted_kl=predicted)
    for size in sizes:
        try:
            yield plan_under(Budget("size", size * 1e6), allotment)
        except BudgetError as error:
            print(error.sentence())


def rows(checkpoint: Checkpoint, target: Target, sizes: Sequence[float], options: Options) -> Iterator[str]:
    """Lines of the Markdown table."""
    bars, engine = Bars(), TorchEngine(checkpoint.root)
    texts = make_texts(lambda: engine, load_tokenizer(checkpoint.root), options, bars)
    importance = calibrate(engine, checkpoint, texts, bars) or {}
    evaluation = texts.evaluation.sequences
    originals = [engine.logits(ids) for ids in evaluation]
    yield "| plan | tensors, MB | formats by bytes | KL predicted | KL true | true ÷ predicted |"
    yield "|---" * 6 + "|"
    for plan in _plans(checkpoint, target, sizes, options):
        with bars.step(plan.budget):
            engine.replace(_weights(checkpoint, plan, importance))
            answers = [engine.logits(ids) for ids in evaluation]
        true = float(np.concatenate([kl_full(p, q) for p, q in zip(originals, answers, strict=True)]).mean())
        shares = ", ".join(f"{grid} {100 * size / plan.nbytes:.0f} %" for grid, size in plan.shares().most_common(4))
        told = plan.predicted_kl or 0.0
        ratio = f"{true / told:.2f}" if told > 0 else "-"
        yield f"| {plan.budget} | {plan.nbytes / 1e6:.1f} | {shares} | {told:.4f} | {true:.4f} | {ratio} |"


def main() -> None:
    """Print the table, and put it into a page when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--target", default="rpi5")
    parser.add_argument("--size", type=float, action="append", help="MB of the file; default: 80, 92.5, 105.5")
    parser.add_argument("--sensitivity", type=Path, action="append", default=[])
    parser.add_argument("--fast", action="append", default=[], help="a format to allow beside the target's")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    target = load(arguments.target)
    gguf = msgspec.structs.replace(target.runtime.gguf, fast=(*target.runtime.gguf.fast, *arguments.fast))
    target = msgspec.structs.replace(target, runtime=msgspec.structs.replace(target.runtime, gguf=gguf))
    options = Options(sensitivity=tuple(arguments.sensitivity))
    lines = list(rows(resolve(arguments.model), target, arguments.size or (80, 92.5, 105.5), options))
    table = "\n".join(lines)
    print(table)
    if arguments.write:
        host = machine()
        replace_in_page(arguments.write, "budget-table", f"{table}\n\nOn {host.cpu}, {host.physical_cores} cores.")


if __name__ == "__main__":
    main()
