"""The survival curve of a model: one stage a format, so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from edgekit import steps, weighing
from edgekit.building import apart
from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.checkpoint.spec import TensorSpec
from edgekit.coherence import metrics, reference
from edgekit.coherence.generation import compare_continuations
from edgekit.coherence.text import fixed_prompts
from edgekit.dispersion.survival import Point, Survival, bits_of, noisy, rounded
from edgekit.engines.torch import TorchEngine
from edgekit.errors import GridError, OptionError
from edgekit.grids import get
from edgekit.options import Options
from edgekit.progress import Progress
from edgekit.quantize.importance import Importance
from edgekit.stages import Made, Stage
from edgekit.steps import Work

_SHOWN = 64
"""Tokens of a sample."""


def survival(
    checkpoint: Checkpoint,
    parent: Checkpoint | None,
    grids: Sequence[str],
    options: Options,
    progress: Progress,
    *,
    noise: bool = False,
) -> Survival:
    """Measure one model.

    Args:
        checkpoint: the model.
        parent: whose full-precision answers it is compared with; None: its own.
        grids: formats; those that a row of the model does not fit are left out and named.
        options: texts, seed, cache.
        progress: told about the steps.
        noise: also measure noise of each format's size.

    Raises:
        GridError: no format fits, or one is unknown.
        OptionError: the parent has another vocabulary.
        EdgekitError: see :func:`edgekit.steps.texts` and :func:`edgekit.steps.sealed`.
    """
    chosen = list(_fitting(checkpoint, grids, progress))
    if parent is not None and parent.spec.vocab_size != checkpoint.spec.vocab_size:
        raise OptionError(
            f"{checkpoint.name} has {checkpoint.spec.vocab_size} tokens and {parent.name} {parent.spec.vocab_size}",
            expected="models with the same tokenizer",
            remedy="leave --against out: each is compared with itself",
        )
    with apart(parent or checkpoint, options, progress) as work:
        made = steps.texts(work)
        answers, digest = steps.sealed(work, made)
        tokenizer = work.tokenizer
    with apart(checkpoint, options, progress) as work:
        importance = weighing.importance(work, made)
        points = tuple(_point(work, grid, answers, digest, importance, noise=noise) for grid in chosen)
    kind = "text of the reference's own" if made.evaluation.kind == "self-generated" else "a text file"
    words = f"{len(made.evaluation.sequences)} sequences of {kind}, sha256 {made.evaluation.sha256[:12]}"
    return Survival(
        model=checkpoint.name, model_sha256=checkpoint.sha256, reference=(parent or checkpoint).name, text=words,
        prompt=fixed_prompts()[0].text,
        original=tokenizer.decode(answers.continuations.lists()[0].tolist()[:_SHOWN]), points=points,
    )  # fmt: skip


def _fitting(checkpoint: Checkpoint, grids: Sequence[str], progress: Progress) -> Iterator[str]:
    shapes = [(tensor.shape[0], tensor.shape[1]) for tensor in _linear(checkpoint)]
    found = 0
    for grid in dict.fromkeys(grids):
        refusals = [reason for shape in shapes if (reason := get(grid).refusal(shape)) is not None]
        if refusals:
            progress.note(f"{grid} is left out: {refusals[0]}")
            continue
        found += 1
        yield grid
    if not found:
        raise GridError(f"no format fits {checkpoint.name}", expected="one with blocks of 32", remedy="name others")


def _linear(checkpoint: Checkpoint) -> list[TensorSpec]:
    return [tensor for tensor in checkpoint.spec.tensors if tensor.rule.kind == "linear"]


def _point(
    work: Work, grid: str, answers: reference.Reference, digest: str, importance: Made | None, *, noise: bool
) -> Point:
    title = f"survival: {grid}"
    stage = Stage("survival", title, {
        "grid": grid, "reference": digest, "importance": importance and importance.digest, "noise": noise,
        "seed": work.options.seed,
    })  # fmt: skip

    def make() -> Point:
        found = weighing.load_importance(importance) or {}
        with work.progress.step(title):
            return _measured(work, grid, answers, found, noise=noise)

    return work.stages.record(stage, Point, make)[0]


def _measured(work: Work, grid: str, answers: reference.Reference, importance: Importance, *, noise: bool) -> Point:
    engine, tensors = work.original.engine(), _linear(work.checkpoint)
    shapes = {tensor.hf: (tensor.shape[0], tensor.shape[1]) for tensor in tensors}
    wrong = whole = 0.0

    def weights(seed: int | None) -> Iterator[tuple[str, F32]]:
        nonlocal wrong, whole
        for index, tensor in enumerate(tensors):
            own = work.checkpoint.read(tensor)
            made = rounded(own, grid, importance.get(tensor.hf))
            if seed is None:
                wrong += float(np.square(made - own, dtype=np.float64).sum())
                whole += float(np.square(own, dtype=np.float64).sum())
            else:
                made = noisy(own, made, seed + index)
            yield tensor.hf, made.T if tensor.rule.transposed else made

    try:
        engine.replace(weights(None))
        coherence = metrics.evaluate(engine, answers, generate=False, items=False)
        said = _continued(work, engine, answers)
        noised = None
        if noise:
            engine.replace(weights(work.options.seed))
            noised = metrics.evaluate(engine, answers, generate=False, items=False)
    finally:
        engine.replace(_own(work.checkpoint, tensors))
    generation = compare_continuations(
        [ids.tolist() for ids in answers.continuations.lists()], said, answers.stop, answers.meta.token_limit
    )
    coherence = msgspec.structs.replace(coherence, generation=generation)
    return Point(
        grid=grid, bits=get(grid).nominal_bits, stored_bits=bits_of(grid, shapes),
        error=(wrong / whole) ** 0.5 if whole else 0.0, coherence=coherence,
        sample=work.tokenizer.decode(said[0][:_SHOWN]), noise=noised,
    )  # fmt: skip


def _own(checkpoint: Checkpoint, tensors: Sequence[TensorSpec]) -> Iterator[tuple[str, F32]]:
    for tensor in tensors:
        own = checkpoint.read(tensor)
        yield tensor.hf, own.T if tensor.rule.transposed else own


def _continued(work: Work, engine: TorchEngine, answers: reference.Reference) -> list[list[int]]:
    """What it says to every prompt, all at once: one by one would take most of the time."""
    prompts = [ids.tolist() for ids in answers.prompts.lists()]
    with work.progress.step(f"survival: continue {len(prompts)} prompts") as advance:
        return engine.greedy_batch(prompts, answers.meta.token_limit, answers.stop, advance)
