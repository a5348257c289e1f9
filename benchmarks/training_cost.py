"""What a training step costs against transformers' Trainer: `python -m benchmarks.training_cost --text FILE`.

Same model (the demo), batch, precision, optimizer and number of tokens. Each round runs every variant once for a few
steps, one after the other; figures are tokens/s of the median step of a run, without its first step.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks._measure import begin, versions
from benchmarks._result import Limit, Row
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.checkpoint.source import resolve
from edgekit.engines.torch import TorchEngine
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.options import SourceOptions
from edgekit.progress import Quiet
from edgekit.training.corpus import Corpus, prepare
from edgekit.training.loop import Job, train
from edgekit.training.passes import has_bfloat16
from edgekit.training.recipe import EndToEnd, Objective, Train
from edgekit.training.state import Kept
from edgekit.training.student import Student

GRID = "int4-sym-b32"
METHOD = (
    "Median step of each run, without the first one; cross-entropy alone is compared with the Trainer, everything else "
    "with our own cross-entropy run of the same round."
)


class Bench:
    """The variants over one model and text."""

    def __init__(self, checkpoint: Checkpoint, corpus: Corpus, chosen: argparse.Namespace) -> None:
        self._checkpoint, self._corpus, self._chosen = checkpoint, corpus, chosen
        self._parent = TorchEngine(checkpoint.root).module.requires_grad_(False)

    def trainer(self) -> float:
        """tokens/s of transformers' Trainer."""
        model = AutoModelForCausalLM.from_pretrained(self._checkpoint.root, dtype=torch.float32)
        rows = [torch.from_numpy(self._corpus.sequence(index)) for index in range(self._corpus.sequences)]
        data = [{"input_ids": ids, "labels": ids} for ids in rows]
        watch = _Watch()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, per_device_train_batch_size=self._chosen.batch, max_steps=self._chosen.steps,
                use_cpu=not torch.cuda.is_available(), bf16=has_bfloat16(), report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, optim="adamw_torch",
            )  # fmt: skip
            Trainer(model=model, args=arguments, train_dataset=data, callbacks=[watch]).train()
        return self._speed(watch.seconds)

    def ours(self, objective: Objective, grid: str = "", kind: Train = "all") -> float:
        """tokens/s of our loop."""
        engine, spec = TorchEngine(self._checkpoint.root), self._checkpoint.spec
        matrices: dict[str, Quantized] = {}
        if grid:
            linear = [tensor for tensor in spec.tensors if tensor.rule.kind == "linear"]
            matrices = {tensor.hf: get(grid).quantize(self._checkpoint.read(tensor)) for tensor in linear}
            engine.replace((name, get(grid).dequantize(matrix)) for name, matrix in matrices.items())
        end = EndToEnd(train=kind, steps=self._chosen.steps, batch=self._chosen.batch)
        student = Student(engine.module, spec, matrices, end)
        with tempfile.TemporaryDirectory() as folder:
            parent = self._parent if objective.distillation else None
            held, kept = self._corpus.held()[:1], Kept(Path(folder))
            job = Job(student, parent, objective, self._corpus, held, end, 0, kept, Quiet())
            seconds = [point.seconds for point in train(job).points]
        return self._speed([after - before for before, after in itertools.pairwise(seconds)])

    def _speed(self, seconds: Sequence[float]) -> float:
        return float(self._chosen.batch * self._corpus.length / statistics.median(seconds[-self._chosen.steps + 1 :]))


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begin = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.monotonic() - self._begin)


CE = Objective(cross_entropy=1, distillation=0)
VARIANTS: dict[str, tuple[Objective, str, Train, float | None]] = {
    "with dispersion (angular_spread, late half)": (
        Objective(cross_entropy=1, distillation=0, dispersion=0.5), "", "all", 0.97,
    ),
    "with distillation": (Objective(cross_entropy=1, distillation=1), "", "all", None),
    f"on {GRID}, all weights": (CE, GRID, "all", None),
    f"on {GRID}, scales and norms only": (CE, GRID, "steps", None),
}  # fmt: skip
"""Title → objective, grid, what learns, least ratio to cross-entropy alone."""


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    chosen = _options(arguments)
    session = begin("training_cost", arguments)
    checkpoint = resolve(None, SourceOptions())
    with tempfile.TemporaryDirectory() as folder:
        corpus = prepare([str(chosen.text)], load_tokenizer(checkpoint.root), 256, Path(folder), Quiet())
        bench, found = Bench(checkpoint, corpus, chosen), dict[str, list[float]]()
        for turn in range(chosen.rounds):
            print(f"round {turn + 1} of {chosen.rounds}", file=sys.stderr)
            found.setdefault("trainer", []).append(bench.trainer())
            found.setdefault("ours", []).append(bench.ours(CE))
            for title, (objective, grid, kind, _) in VARIANTS.items():
                found.setdefault(title, []).append(bench.ours(objective, grid, kind))
    note = (f"batch {chosen.batch} × {corpus.length} tokens, {chosen.steps} steps, {checkpoint.name}",)
    rows = [_row("cross-entropy", "transformers' Trainer", found["ours"], found["trainer"], 0.9, note)]
    rows += [
        _row(title, "cross-entropy alone", found[title], found["ours"], least, ())
        for title, (*_, least) in VARIANTS.items()
    ]
    session.finish(rows, versions("edgekit", "torch", "transformers", "accelerate"), METHOD, chosen.json)


def _row(
    title: str, peer: str, ours: Sequence[float], peers: Sequence[float], least: float | None, notes: tuple[str, ...]
) -> Row:
    limit = None if least is None else Limit(measure="ratio_at_least", value=least)
    return Row(
        title=f"training step, {title}", peer=peer, unit="tokens/s", ours=tuple(ours), peers=tuple(peers), limit=limit,
        notes=notes,
    )  # fmt: skip


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
