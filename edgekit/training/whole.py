"""From the checkpoint to the trained weights: the matrices that training begins with, then the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from edgekit.checkpoint.checkpoint import Checkpoint, as_stored
from edgekit.checkpoint.spec import TensorSpec
from edgekit.engines.base import F32
from edgekit.engines.torch import TorchEngine
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.progress import Progress
from edgekit.training.corpus import Corpus
from edgekit.training.loop import Job, Outcome, train
from edgekit.training.output import write_weights
from edgekit.training.passes import judged
from edgekit.training.processes import one_after_the_other
from edgekit.training.recipe import Recipe
from edgekit.training.record import Block, HeldOut
from edgekit.training.starting import Begin
from edgekit.training.state import Kept, readable
from edgekit.training.student import Student

_FEW = 16
"""Sequences that importance is measured on where no block is trained by itself."""
_PLAIN = "plain.json"


@dataclass(frozen=True)
class Result:
    """What training made."""

    outcome: Outcome
    blocks: tuple[Block, ...]
    held_out: tuple[HeldOut, ...]
    weights: Mapping[str, F32]
    """Tensor name → values as Hugging Face stores them."""
    matrices: Mapping[str, Quantized]
    """Tensor name → codes and scales of what is on a grid."""


@dataclass(frozen=True)
class Whole:
    """One training."""

    checkpoint: Checkpoint
    recipe: Recipe
    grids: Mapping[str, str]
    corpus: Corpus
    kept: Kept
    progress: Progress
    parented: bool = True
    """Whether the checkpoint is the parent of what is trained; random weights are nobody's."""
    _engines: dict[str, TorchEngine] = field(default_factory=dict)

    def run(self) -> Result:
        """Train.

        Raises:
            EdgekitError: see :meth:`edgekit.training.starting.Begin.run` and :func:`edgekit.training.loop.train`.
        """
        begin, engine = self._begin(), self._engine("model")
        matrices, blocks, plain = dict[str, Quantized](), tuple[Block, ...](), tuple[HeldOut, ...]()
        if self.grids:
            with one_after_the_other():
                matrices, blocks = begin.run(engine)
                plain = (self._plain(begin, engine),)
        if blocks or (self.recipe.end_to_end and self.recipe.end_to_end.train == "steps"):
            engine.replace((t.hf, as_stored(t, _values(matrices[t.hf]))) for t in self._tensors if t.hf in matrices)
        if self.recipe.end_to_end is None:
            after = judged(engine.module, self._parent(), self.corpus.held(), 0)
            weights = {tensor.hf: engine.module.get_parameter(tensor.hf).detach().numpy() for tensor in self._tensors}
            return Result(Outcome((), (), 1, 1, 0.0), blocks, (*plain, after), weights, matrices)
        return self._trained(engine, matrices, blocks, plain)

    def _trained(
        self, engine: TorchEngine, matrices: Mapping[str, Quantized], blocks: tuple[Block, ...],
        plain: tuple[HeldOut, ...],
    ) -> Result:  # fmt: skip
        end = self.recipe.end_to_end
        if end is None:
            raise ValueError("the whole model is not trained")
        student = Student(engine.module, self.checkpoint.spec, matrices, end)
        job = Job(
            student, self._parent(), self.recipe.objective, self.corpus, self.corpus.held(), end, self.recipe.seed,
            self.kept, self.progress, self._read, partial(self._snapshot, student),
        )  # fmt: skip
        outcome = train(job)
        engine.module.cpu()
        held_out = (*plain, *outcome.held_out)
        return Result(outcome, blocks, held_out, student.weights(), student.matrices())

    def _snapshot(self, student: Student, step: int) -> None:
        with self.progress.step(f"write the weights after {step} steps"), self.kept.checkpoint(step) as folder:
            write_weights(folder, self.checkpoint, student.weights(), student.matrices())

    def _parent(self) -> Any | None:
        return self._engine("parent").module if self.parented else None

    @property
    def _read(self) -> int:
        """Sequences that blocks are trained on; the whole model goes on behind them."""
        return min(self.corpus.sequences, self.recipe.blockwise.sequences) if self.recipe.blockwise else 0

    @property
    def _tensors(self) -> tuple[TensorSpec, ...]:
        return self.checkpoint.spec.tensors

    def _begin(self) -> Begin:
        count = self._read or min(self.corpus.sequences, _FEW)
        text = [self.corpus.sequence(self.corpus.order(index, self.recipe.seed)) for index in range(count)]
        return Begin(
            self.checkpoint,
            self.grids,
            self.recipe.blockwise,
            text,
            self.recipe.seed,
            self.kept.starts(),
            self.progress,
        )

    def _engine(self, which: str) -> TorchEngine:
        if which not in self._engines:
            with self.progress.step(f"load the full-precision {which}"):
                self._engines[which] = TorchEngine(self.checkpoint.root)
                self._engines[which].module.requires_grad_(False)
        return self._engines[which]

    def _plain(self, begin: Begin, engine: TorchEngine) -> HeldOut:
        """Held-out text without any training: everything rounded to nearest."""
        path = self.kept.folder / _PLAIN
        if path.is_file():
            with readable(path):
                return msgspec.json.decode(path.read_bytes(), type=HeldOut)
        engine.replace(begin.nearest(engine))
        with self.progress.step("held-out text, rounded to nearest"):
            found = judged(engine.module, self._parent(), self.corpus.held(), 0)
        engine.replace((t.hf, as_stored(t, self.checkpoint.read(t))) for t in self._tensors if t.hf in self.grids)
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(found))
        part.rename(path)
        return found


def _values(matrix: Quantized) -> F32:
    return get(matrix.grid).dequantize(matrix)
