"""The survival curve of a model: one stage a format, so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import msgspec
import numpy as np

from edgekit import against, cache, steps, surviving_artefacts, weighing
from edgekit.building import apart
from edgekit.checkpoint.checkpoint import F32, Checkpoint, as_stored
from edgekit.checkpoint.spec import TensorSpec
from edgekit.coherence import metrics, reference
from edgekit.coherence.generation import compare_continuations
from edgekit.coherence.text import fixed_prompts
from edgekit.dispersion.survival import SHOWN, Point, Survival, bits_of, noisy, rounded, shapes_of, split
from edgekit.engines.torch import TorchEngine
from edgekit.errors import GridError
from edgekit.export import gguf
from edgekit.grids import get
from edgekit.options import Container, Options
from edgekit.progress import Progress
from edgekit.quantize import trained
from edgekit.quantize.importance import Importance
from edgekit.stages import Made, Stage
from edgekit.steps import Work


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
        grids: formats, computed in torch, or exported and run by their engine where they are written "gguf:Q4_0" or
            "onnx:int4-sym-b32"; those that a row of the model does not fit are left out and named.
        options: texts, seed, cache.
        progress: told about the steps.
        noise: also measure noise of each format's size, in torch.

    Raises:
        GridError: no format fits, or one is unknown, or none of the container that it is asked for in.
        MissingDependencyError: an engine is not installed.
        OptionError: the parent has another tokenizer, or a longer context than the model and used it.
        EdgekitError: see :func:`edgekit.steps.texts` and :func:`edgekit.steps.sealed`.
    """
    surviving_artefacts.refuse(split(name) for name in grids if split(name)[0])
    chosen = list(_fitting(checkpoint, grids, progress))
    if parent is not None:
        against.refuse_others(checkpoint, parent)
    lengths = [one.spec.context_length for one in (checkpoint, parent) if one is not None]
    options = replace(options, length=min(options.length, *lengths))
    with cache.using(checkpoint.root):
        with apart(parent or checkpoint, options, progress) as work:
            made = steps.texts(work)
            answers, digest = steps.sealed(work, made)
            tokenizer = work.tokenizer
        against.refuse_long(checkpoint, answers)
        with apart(checkpoint, options, progress) as work:
            importance = weighing.importance(work, made)
            points = (*_points(work, chosen, answers, digest, importance, noise=noise),)
    kind = "text of the reference's own" if made.evaluation.kind == "self-generated" else "a text file"
    words = f"{len(made.evaluation.sequences)} sequences of {kind}, sha256 {made.evaluation.sha256[:12]}"
    return Survival(
        model=checkpoint.name, model_sha256=checkpoint.sha256, reference=(parent or checkpoint).name, text=words,
        prompt=fixed_prompts()[0].text,
        original=tokenizer.decode(answers.continuations.lists()[0].tolist()[:SHOWN]), points=points,
    )  # fmt: skip


def _fitting(checkpoint: Checkpoint, grids: Sequence[str], progress: Progress) -> Iterator[str]:
    shapes = shapes_of(checkpoint.spec).values()
    found = 0
    for grid in dict.fromkeys(grids):
        container, name = split(grid)
        refusals = [reason for shape in shapes if (reason := get(name).refusal(shape)) is not None]
        if container == "gguf" and (unknown := gguf.unwritable(name)):
            refusals.append(unknown)
        if refusals:
            progress.note(f"{grid} is left out: {refusals[0]}")
            continue
        found += 1
        yield grid
    if not found:
        raise GridError(f"no format fits {checkpoint.name}", expected="one with blocks of 32", remedy="name others")


def _linear(checkpoint: Checkpoint) -> list[TensorSpec]:
    return [tensor for tensor in checkpoint.spec.tensors if tensor.rule.kind == "linear"]


def _points(
    work: Work, chosen: Sequence[str], answers: reference.Reference, digest: str, importance: Made | None, *,
    noise: bool,
) -> Iterator[Point]:  # fmt: skip
    """All of torch first: then its model leaves the memory to the engines."""
    for name in chosen:
        if not split(name)[0]:
            yield _point(work, name, answers, digest, importance, noise=noise)
    work.original.close()
    kinds: tuple[Container, ...] = ("gguf", "onnx")
    for kind in kinds:
        for grid in (grid for container, grid in map(split, chosen) if container == kind):
            yield _exported(work, kind, grid, answers, digest, importance)


def _exported(
    work: Work, container: Container, grid: str, answers: reference.Reference, digest: str, importance: Made | None
) -> Point:
    title = f"survival: {grid} as {'a GGUF' if container == 'gguf' else 'an ONNX'} file"
    inputs = {"grid": grid, "reference": digest, "importance": importance and importance.digest}

    def make() -> Point:
        return surviving_artefacts.measured(work, container, grid, answers, importance)

    return work.stages.record(Stage(f"survival-{container}", title, inputs), Point, make)[0]


def _point(
    work: Work, grid: str, answers: reference.Reference, digest: str, importance: Made | None, *, noise: bool
) -> Point:
    inputs = {"grid": grid, "reference": digest, "importance": importance and importance.digest}
    found = weighing.load_importance(importance) or {}
    title = f"survival: {grid}"

    def make() -> Point:
        with work.progress.step(title):
            return _measured(work, grid, answers, found)

    point = work.stages.record(Stage("survival", title, inputs), Point, make)[0]
    if not noise:
        return point
    beside = f"survival: noise as large as that of {grid}"

    def make_noise() -> metrics.Coherence:
        with work.progress.step(beside):
            return _noised(work, grid, answers, found)

    stage = Stage("survival-noise", beside, {**inputs, "seed": work.options.seed})
    return msgspec.structs.replace(point, noise=work.stages.record(stage, metrics.Coherence, make_noise)[0])


def _measured(work: Work, grid: str, answers: reference.Reference, importance: Importance) -> Point:
    engine, tensors = work.original.engine(), _linear(work.checkpoint)
    wrong = whole = 0.0

    def weights() -> Iterator[tuple[str, F32]]:
        nonlocal wrong, whole
        for tensor in tensors:
            own = work.checkpoint.read(tensor)
            made = in_format(work.checkpoint, tensor, own, grid, importance)
            wrong += float(np.square(made - own, dtype=np.float64).sum())
            whole += float(np.square(own, dtype=np.float64).sum())
            yield tensor.hf, as_stored(tensor, made)

    with _borrowed(work):
        engine.replace(weights())
        coherence = metrics.evaluate(engine, answers, generate=False, items=False)
        said = _continued(work, engine, answers)
    generation = compare_continuations(
        [ids.tolist() for ids in answers.continuations.lists()], said, answers.stop, answers.meta.token_limit
    )
    return Point(
        grid=grid, bits=get(grid).nominal_bits, stored_bits=bits_of(grid, shapes_of(work.checkpoint.spec)),
        error=(wrong / whole) ** 0.5 if whole else 0.0,
        coherence=msgspec.structs.replace(coherence, generation=generation),
        sample=work.tokenizer.decode(said[0][:SHOWN]),
    )  # fmt: skip


def in_format(checkpoint: Checkpoint, tensor: TensorSpec, own: F32, grid: str, importance: Importance) -> F32:
    """The matrix `own` in that format; one that was trained on it is exported as it is."""
    place = trained.places(checkpoint).get(tensor.hf)
    if place is not None and place.grid == grid and trained.fits(checkpoint, tensor, place):
        return own
    return rounded(own, grid, importance.get(tensor.hf))


def _noised(work: Work, grid: str, answers: reference.Reference, importance: Importance) -> metrics.Coherence:
    engine = work.original.engine()

    def weights() -> Iterator[tuple[str, F32]]:
        for index, tensor in enumerate(_linear(work.checkpoint)):
            own = work.checkpoint.read(tensor)
            made = in_format(work.checkpoint, tensor, own, grid, importance)
            yield tensor.hf, as_stored(tensor, noisy(own, made, (work.options.seed, index)))

    with _borrowed(work):
        engine.replace(weights())
        return metrics.evaluate(engine, answers, generate=False, items=False)


@contextmanager
def _borrowed(work: Work) -> Iterator[None]:
    """The model has its own weights again at the end."""
    try:
        yield
    finally:
        tensors = _linear(work.checkpoint)
        work.original.engine().replace((t.hf, as_stored(t, work.checkpoint.read(t))) for t in tensors)


def _continued(work: Work, engine: TorchEngine, answers: reference.Reference) -> list[list[int]]:
    """What it says to every prompt, all at once: one by one would take most of the time."""
    prompts = [ids.tolist() for ids in answers.prompts.lists()]
    with work.progress.step(f"survival: continue {len(prompts)} prompts") as advance:
        return engine.greedy_batch(prompts, answers.meta.token_limit, answers.stop, advance)
