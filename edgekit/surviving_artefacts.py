"""A point of a survival curve as a real file: exported, read back, and measured in the engine that runs it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from edgekit.checkpoint.spec import Spec
from edgekit.coherence import metrics, reference
from edgekit.coherence.engine_calls import checked_greedy
from edgekit.coherence.generation import compare_continuations
from edgekit.dispersion.survival import SHOWN, Point, bits_of, shapes_of
from edgekit.engines.base import Engine
from edgekit.engines.opening import open_engine
from edgekit.errors import GridError, MissingDependencyError
from edgekit.export import artefacts
from edgekit.export.artefacts import ENGINES, Built
from edgekit.export.onnx_store import FLOAT
from edgekit.grids import get
from edgekit.options import Container
from edgekit.quantize.plan import Entry, Plan, full_precision_plan
from edgekit.rounding import rounded
from edgekit.stages import Made
from edgekit.steps import Work
from edgekit.weighing import load_importance

_PACKAGES = {"gguf": ("llama_cpp", "gguf"), "onnx": ("onnxruntime", "onnx")}


def refuse(wanted: Iterable[tuple[str, str]]) -> None:
    """Refuse what cannot be exported or run, before anything is measured.

    Args:
        wanted: container and format of each artefact.

    Raises:
        GridError: there is no such container or format, or the one does not hold the other.
        MissingDependencyError: the package of an engine, or of a writer, is not installed.
    """
    for container, name in wanted:
        if container not in ENGINES:
            raise GridError(f"there is no engine for {container}:{name}", expected="gguf:FORMAT or onnx:FORMAT")
        if (own := get(name).container) != container:
            raise GridError(f"{name} is no format of {container}", expected=f"{own}:{name}")
        if name.startswith("embed-"):
            raise GridError(
                f"{name} is a format of embeddings, and linear layers are to be exported",
                expected=f"{container}:{name.removeprefix('embed-')}",
            )
        for package in _PACKAGES[container]:
            if find_spec(package) is None:
                raise MissingDependencyError(
                    f"the package {package}, which {container} artefacts need, is not installed",
                    remedy="pip install 'edgekit[build]', or leave --artefacts out",
                )


def plan_in(spec: Spec, container: Container, grid: str) -> Plan:
    """Every linear layer in one format, everything else in full precision: F16 in GGUF, F32 in ONNX.

    Raises:
        GridError: a linear layer cannot take the format.
    """
    bits = get(grid).nominal_bits
    entries = tuple(
        Entry(entry.tensor, bits, grid, get(grid).nbytes((entry.tensor.shape[0], entry.tensor.shape[1])))
        if entry.tensor.rule.kind == "linear"
        else entry
        for entry in full_precision_plan(spec, container).entries
    )
    return Plan(container, bits, entries)


def measured(
    work: Work, container: Container, grid: str, answers: reference.Reference, importance: Made | None
) -> Point:
    """Export the model, compare every tensor of the file with what was planned, and ask the engine. Keeps no file.

    Raises:
        ParityError: the file does not hold what was planned, or the engine returns no logits; names the place.
        EdgekitError: see :func:`edgekit.rounding.rounded` and :func:`edgekit.export.artefacts.write`.
    """
    plan = plan_in(work.checkpoint.spec, container, grid)
    codes, _ = rounded(work, plan, importance)
    with TemporaryDirectory(dir=work.scratch, prefix="survival-") as folder:
        built = artefacts.write(
            work.checkpoint, plan, Path(folder), work.scratch, work.progress, load_importance(importance), rounded=codes
        )
        artefacts.check_bytes(work.checkpoint, _readable(built), work.progress)
        error = _error(work, built)
        engine = open_engine(container, built.path, context=answers.longest)
        try:
            with work.progress.step(f"survival: {grid} in {ENGINES[container]}") as advance:
                coherence = metrics.evaluate(engine, answers, generate=False, items=False, progress=advance)
            said = _continued(work, engine, answers)
        finally:
            engine.close()
        nbytes = built.nbytes
    generation = compare_continuations(
        [ids.tolist() for ids in answers.continuations.lists()], said, answers.stop, answers.meta.token_limit
    )
    return Point(
        grid=grid, bits=get(grid).nominal_bits, stored_bits=bits_of(grid, shapes_of(work.checkpoint.spec)), error=error,
        coherence=msgspec.structs.replace(coherence, generation=generation),
        sample=work.tokenizer.decode(said[0][:SHOWN]), engine=ENGINES[container], nbytes=nbytes,
    )  # fmt: skip


def _readable(built: Built) -> Built:
    """Without what ONNX holds as plain floats: its reader decodes the quantized matrices."""
    if built.plan.container == "gguf":
        return built
    kept = tuple(entry for entry in built.plan.entries if entry.grid != FLOAT)
    return replace(built, plan=replace(built.plan, entries=kept))


def _continued(work: Work, engine: Engine, answers: reference.Reference) -> list[list[int]]:
    """What it says to every prompt, as the reference was asked."""
    prompts, limit = answers.prompts.lists(), answers.meta.token_limit
    said = []
    with work.progress.step(f"survival: continue {len(prompts)} prompts in {engine.name}") as advance:
        for index, ids in enumerate(prompts):
            said.append(checked_greedy(engine, ids, limit, answers.stop, index))
            advance(index + 1, len(prompts))
    return said


def _error(work: Work, built: Built) -> float:
    """‖ΔW‖ / ‖W‖ over the linear layers, of the weights that the format's official reader finds in the file."""
    linear = {tensor.hf: tensor for tensor in work.checkpoint.spec.tensors if tensor.rule.kind == "linear"}
    wrong = whole = 0.0
    for name, values in built.weights(work.checkpoint):
        if name in linear:
            own = work.checkpoint.read(linear[name])
            wrong += float(np.square(values - own, dtype=np.float64).sum())
            whole += float(np.square(own, dtype=np.float64).sum())
    return (wrong / whole) ** 0.5 if whole else 0.0
