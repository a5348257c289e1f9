"""The Python API: what `edgekit build`, `edgekit run` and `edgekit verify` do, for programs. See docs/python.md.

Every failure is an :class:`edgekit.errors.EdgekitError`. Nothing heavy is imported before it is needed: opening a
bundle needs what a board has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import contradictions
from edgekit.errors import MissingDependencyError, UnknownArchitectureError
from edgekit.opened import OpenBundle as OpenBundle
from edgekit.opened import open_bundle as open_bundle
from edgekit.options import Container, Options, SourceOptions
from edgekit.progress import Progress, Quiet

if TYPE_CHECKING:
    from edgekit.bench.result import BenchResult
    from edgekit.checkpoint.checkpoint import Checkpoint
    from edgekit.dispersion.condensation import Condensation
    from edgekit.dispersion.survival import Survival
    from edgekit.economy.record import Economy
    from edgekit.quantize.importance import Importance
    from edgekit.quantize.sensitivity_map import SensitivityMap
    from edgekit.report.model import Report
    from edgekit.training.recipe import Recipe
    from edgekit.training.record import Run

_ALL_FORMATS = Options().formats


@dataclass(frozen=True)
class Built:
    """What a build made."""

    bundle: Path
    """The bundle's folder."""
    report: Report
    """What was measured; also in the bundle as report.json and report.html."""

    @property
    def passed(self) -> bool:
        """Whether every artefact is within the target's limits."""
        return all(artefact.verdict.passed for artefact in self.report.artefacts)


def build(
    model: str | Path | None = None,
    *,
    target: str | Path = "rpi5",
    output: str | Path = "dist",
    options: Options | None = None,
    source: SourceOptions | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build a model into a verified bundle for a board, as `edgekit build` does.

    Args:
        model: a Hugging Face folder, a GGUF file, or "org/name" on the hub; None: the demo, SmolLM2-135M.
        target: a board's name (`edgekit targets`) or the path of a .toml file.
        output: the folder in which the bundle's folder appears, when it is whole.
        options: bits, formats, texts, calibration and so on.
        source: revision, offline, LoRA adapter.
        progress: told what is being done; :class:`edgekit.progress.Bars` shows it on a terminal. None: nobody is.

    Raises:
        EdgekitError: one of its kinds, see docs/errors.md; nothing is left in `output` then.
    """
    from edgekit.checkpoint.source import resolve
    from edgekit.checkpoint.tokenizer_fit import refuse_misfit
    from edgekit.targets import load

    options, source, progress = options or Options(), source or SourceOptions(), progress or Quiet()
    # What is quick to check comes before a download, and before PyTorch is loaded, which takes seconds.
    board = load(str(target))
    contradictions.refuse(options)
    any_family = options.llama_cpp is not None or options.exporter != "edgekit"
    name = None if model is None else str(model)
    checkpoint = resolve(name, replace(source, any_family=any_family), progress=progress)
    refuse_misfit(checkpoint)
    options = _possible(checkpoint, options, progress)
    try:
        _refuse_missing()
        from edgekit import building
        from edgekit.export.hatches import with_caveats
        from edgekit.quantize.groups import stock
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the package {error.name} is not installed", remedy="pip install 'edgekit[build]', or see edgekit doctor"
        ) from error
    contradictions.refuse_foreign_imatrix(checkpoint, options)
    checkpoint = with_caveats(checkpoint, options)
    board = stock(board) if options.portable else board
    bundle = Path(output) / building.bundle_name(checkpoint, board, options)
    return Built(bundle, building.build(checkpoint, board, bundle, options, progress))


def sensitivity(
    model: str | Path | None,
    container: Container,
    *,
    output: str | Path | None = None,
    target: str | Path | None = None,
    options: Options | None = None,
    source: SourceOptions | None = None,
    progress: Progress | None = None,
) -> SensitivityMap:
    """Measure what every number format does to every group of tensors, as `edgekit sensitivity` does.

    Args:
        model: as in :func:`build`.
        container: "gguf" or "onnx".
        output: the map's file; None: it is only returned.
        target: a board whose formats are covered beside the usual ones.
        options: calibration text, seed, cache; `force` replaces the file.
        source: as in :func:`build`.
        progress: as in :func:`build`.

    Raises:
        EdgekitError: one of its kinds, see docs/errors.md.
    """
    from edgekit.files import whole_file
    from edgekit.quantize.sensitivity_map import to_json
    from edgekit.targets import load

    options, progress = options or Options(), progress or Quiet()
    checkpoint = _opened(model, output, options, source, progress)
    from edgekit import building

    board = None if target is None else load(str(target))
    found = building.sensitivity_of(checkpoint, container, options, progress, board)
    if output is not None:
        with whole_file(Path(output), force=options.force) as fresh:
            fresh.write_bytes(to_json(found))
    return found


def imatrix(
    model: str | Path | None,
    output: str | Path,
    *,
    options: Options | None = None,
    source: SourceOptions | None = None,
    progress: Progress | None = None,
) -> Importance:
    """Measure the importance of every layer's inputs and write it for llama.cpp, as `edgekit imatrix` does.

    Args:
        model: as in :func:`build`.
        output: the importance matrix, a GGUF file that llama-quantize and `edgekit build --imatrix` take.
        options: calibration text, sequences, length, seed, cache; `force` replaces the file.
        source: as in :func:`build`.
        progress: as in :func:`build`.

    Returns:
        Hugging Face tensor name → mean square of each input.

    Raises:
        EdgekitError: one of its kinds, see docs/errors.md.
    """
    options, progress = options or Options(), progress or Quiet()
    checkpoint = _opened(model, output, options, source, progress)
    from edgekit import building
    from edgekit.quantize.imatrix import write

    own = options.calibration_text
    found, text = building.importance_of(checkpoint, replace(options, text=own), progress)  # so that none is written
    dataset = f"written by {checkpoint.name}, seed {options.seed}" if own is None else own.name
    write(Path(output), found, checkpoint.spec, text.sequences, dataset, force=options.force)
    return found


def condensation(
    model: str | Path | None = None,
    *,
    options: Options | None = None,
    source: SourceOptions | None = None,
    progress: Progress | None = None,
) -> Condensation:
    """Measure how condensed a model is, as `edgekit condensation` does.

    Args:
        model: as in :func:`build`.
        options: text, sequences, length, seed.
        source: as in :func:`build`.
        progress: as in :func:`build`.

    Raises:
        EdgekitError: one of its kinds, see docs/errors.md.
    """
    options, progress = options or Options(length=512), progress or Quiet()
    checkpoint = _opened(model, None, options, source, progress)
    from edgekit import condensing

    return condensing.condensation(checkpoint, options, progress)


def survive(
    model: str | Path | None = None,
    *,
    against: str | Path | None = None,
    grids: Sequence[str] | None = None,
    noise: bool = False,
    options: Options | None = None,
    source: SourceOptions | None = None,
    progress: Progress | None = None,
) -> Survival:
    """Measure a model at fewer and fewer bits, as `edgekit survive` does.

    Args:
        model: as in :func:`build`.
        against: whose full precision it is compared with; None: its own.
        grids: number formats; None: :data:`edgekit.dispersion.survival.GRIDS`.
        noise: also measure Gaussian noise as large as each format's rounding.
        options: texts, sequences, length, seed, cache.
        source: as in :func:`build`.
        progress: as in :func:`build`.

    Raises:
        EdgekitError: one of its kinds, see docs/errors.md.
    """
    options, progress = options or Options(), progress or Quiet()
    checkpoint = _opened(model, None, options, source, progress)
    # The adapter and the revision are the model's, not its parent's.
    plain = replace(source or SourceOptions(), lora=None, revision=None)
    parent = None if against is None else _opened(against, None, options, plain, progress)
    from edgekit import surviving
    from edgekit.dispersion.survival import GRIDS

    return surviving.survival(checkpoint, parent, grids or GRIDS, options, progress, noise=noise)


def economy(
    model: str | Path | None = None,
    *,
    against: str | Path | None = None,
    target: str | Path | None = None,
    container: Container = "gguf",
    grid: str | None = None,
    shares: Sequence[float] | None = None,
    max_kl: float | None = None,
    uniform: bool = False,
    measured: BenchResult | None = None,
    options: Options | None = None,
    source: SourceOptions | None = None,
    progress: Progress | None = None,
) -> Economy:
    """Count the connections, bytes and joules of a token, and what leaving some out costs, as `edgekit economy` does.

    Args:
        model: as in :func:`build`, or a bundle's folder, whose GGUF file is taken.
        against: whose full precision it is compared with; None: its own.
        target: whose speed and energy are predicted, and whose formats are counted; None: a bundle's own, or rpi5.
        container: whose formats are counted; a bundle's are its own.
        grid: format that the linear layers are computed and counted in; None: as the model has them, counted in
            `options.bits`.
        shares: of the linear layers' connections that are left out; None: :data:`edgekit.economy.record.SHARES`.
        max_kl: nats that leaving out may cost; None: :data:`edgekit.economy.record.MAX_KL`.
        uniform: leave the same share out of every layer, instead of what costs least.
        measured: a result of `edgekit bench` on a board, whose speed and energy are shown beside the predicted ones.
        options: bits, texts, sequences, length, seed, cache.
        source: as in :func:`build`.
        progress: as in :func:`build`.

    Raises:
        EdgekitError: one of its kinds, see docs/errors.md.
    """
    from edgekit.counting import counted, decoded
    from edgekit.economy.record import MAX_KL, SHARES
    from edgekit.targets import load

    options, progress = options or Options(), progress or Quiet()
    board = None if target is None else load(str(target))
    said = None if measured is None else decoded(measured, container)
    packed = counted(model)
    board = board or packed.target or load("rpi5")
    checkpoint = _opened(packed.path, None, options, source, progress)
    plain = replace(source or SourceOptions(), lora=None, revision=None)
    parent = None if against is None else _opened(against, None, options, plain, progress)
    from edgekit import economizing

    wish = economizing.Wish(
        packed.plan(checkpoint, board, container, options.bits, grid), board, grid, tuple(shares or SHARES),
        MAX_KL if max_kl is None else max_kl, uniform, said,
    )  # fmt: skip
    return economizing.economy(checkpoint, parent, wish, options, progress)


def disperse(
    model: str | Path | None,
    output: str | Path,
    *,
    text: Sequence[str],
    recipe: str | Path | Recipe = "int4",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    source: SourceOptions | None = None,
    force: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train a model so that it survives few bits, as `edgekit disperse` does.

    Args:
        model: as in :func:`build`.
        output: folder of the trained model.
        text: what it is trained on, see :func:`edgekit.training.corpus.prepare`.
        recipe: of edgekit by name, of a file, or one that is made in a program.
        changes: values that differ from the recipe's, see :func:`edgekit.training.recipe.changed`.
        source: as in :func:`build`.
        force: replace an existing output.
        restart: begin anew instead of going on with an interrupted training.
        progress: as in :func:`build`.

    Raises:
        EdgekitError: one of its kinds, see docs/errors.md.
    """
    from edgekit.files import refuse_existing
    from edgekit.training.recipe import Recipe, changed, load

    refuse_existing(Path(output), force)
    named = "" if isinstance(recipe, Recipe) else Path(recipe).stem
    chosen = changed(recipe if isinstance(recipe, Recipe) else load(recipe), changes or {})
    checkpoint = _opened(model, None, Options(), source, progress or Quiet())
    from edgekit import dispersing

    wish = dispersing.Wish(checkpoint, chosen, tuple(text), named)
    return dispersing.disperse(wish, Path(output), progress or Quiet(), force=force, restart=restart)


def _opened(
    model: str | Path | None, output: str | Path | None, options: Options, source: SourceOptions | None, shown: Progress
) -> Checkpoint:
    """The model of a verb that measures it, after everything that can be refused before."""
    from edgekit.checkpoint.source import resolve
    from edgekit.files import refuse_existing

    contradictions.refuse(options)
    if output is not None:
        refuse_existing(Path(output), options.force)
    checkpoint = resolve(None if model is None else str(model), source or SourceOptions(), progress=shown)
    try:
        _refuse_missing()
        from edgekit import building  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the package {error.name} is not installed", remedy="pip install 'edgekit[build]', or see edgekit doctor"
        ) from error
    contradictions.refuse_foreign_imatrix(checkpoint, options)
    return checkpoint


def _possible(checkpoint: Checkpoint, options: Options, progress: Progress) -> Options:
    """The options with the formats that can be made of an unknown family; all formats of a known one.

    Raises:
        UnknownArchitectureError: a format was asked for that nobody makes.
    """
    from edgekit.checkpoint.foreign import is_foreign

    possible = tuple(c for c in options.formats if options.converts(c) or not is_foreign(checkpoint))
    left_out = [container for container in options.formats if container not in possible]
    if left_out and (options.asked or options.formats != _ALL_FORMATS):
        raise UnknownArchitectureError(
            f"edgekit cannot export {checkpoint.spec.architecture!a} by itself",
            expected=f"--format {' --format '.join(possible)} only, or an exporter for each",
            remedy="--llama-cpp DIR makes GGUF, --exporter optimum makes ONNX",
        )
    for container in left_out:
        reason = f"edgekit cannot export {checkpoint.spec.architecture!a} by itself"
        progress.note(f"{container.upper()} is left out: {reason}, see docs/escape-hatches.md")
    return replace(options, formats=possible)


def _refuse_missing() -> None:
    """PyTorch is loaded by the first stage that is not in the cache: whether it is there is found out before."""
    for name in ("torch", "transformers", "scipy"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(name=name)
