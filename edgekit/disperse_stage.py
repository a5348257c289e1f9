"""`edgekit build --disperse`: the model is trained on the formats of each plan before the artefact is made.

The same plan's artefact without training is made and measured too, so that the report can show what training gave; it
is not shipped. What a killed build has trained lies in the cache, where the same build goes on with it.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit import cache, locks, steps, weighing
from edgekit.bundle.manifest import REPORTS
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.coherence.metrics import Coherence
from edgekit.coherence.reference import Reference
from edgekit.errors import OptionError
from edgekit.files import cache_dir, copy_tree
from edgekit.grids import get
from edgekit.grids.scalar import is_scalar
from edgekit.options import Container, Options
from edgekit.original import Original, Texts
from edgekit.quantize.plan import Entry, Plan
from edgekit.report import model as reports
from edgekit.stages import Made, Stage, Stages
from edgekit.steps import Work, surroundings
from edgekit.training import record, sources
from edgekit.training.recipe import Recipe, load

if TYPE_CHECKING:  # it loads torch, which a build without a training may do without
    from edgekit.dispersing import Wish

_MODEL = "model"
_MOST_BITS = 8


@dataclass(frozen=True)
class Maker:
    """Whose weights the artefact of one format is made of."""

    work: Work
    importance: Made | None
    dispersed: reports.Dispersed | None = None
    """The training, where there was one."""
    plain: Sequence[Sequence[int]] = ()
    """What the artefact without it says to the first prompts: token ids."""


@dataclass(frozen=True)
class _Plain:
    coherence: Coherence
    said: Sequence[Sequence[int]]


def suffix(options: Options) -> str:
    """Of a bundle's name: ".", the recipe's name in lower-case letters, digits and dashes; "" without a training."""
    return "" if options.disperse is None else f".{_slug(Path(options.disperse).stem)}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "recipe"


def refuse(plans: Sequence[Plan], options: Options) -> None:
    """Check that there is something to train in every plan.

    Raises:
        OptionError: a plan puts no linear layer on a format that can be trained on.
        InputNotFoundError: there is no such recipe.
        MissingDependencyError: a package that training needs is not installed.
    """
    if options.disperse is None:
        return
    from edgekit.dispersing import refuse_missing

    refuse_missing()
    if not load(options.disperse).grid:
        return
    for plan in plans:
        if not _grids(plan):
            formats = ", ".join(sorted({entry.grid for entry in plan.entries if _is_of_layer(entry)}))
            raise OptionError(
                f"--disperse {options.disperse} has nothing to train for {plan.container.upper()}: its plan puts the "
                f"linear layers on {formats}",
                expected=f"formats with a code of at most {_MOST_BITS} bits for each weight",
                remedy="give other --bits, or --format without that one",
            )


def _is_of_layer(entry: Entry) -> bool:
    return entry.tensor.rule.kind == "linear" and entry.tensor.layer is not None


def _grids(plan: Plan) -> dict[str, str]:
    """Tensor name → format of what can be trained."""
    return {
        entry.tensor.hf: entry.grid
        for entry in plan.entries
        if _is_of_layer(entry) and is_scalar(entry.grid) and get(entry.grid).nominal_bits <= _MOST_BITS
    }


@contextmanager
def makers(
    work: Work, plans: Sequence[Plan], texts: Texts, importance: Made | None, sealed: Reference, digest: str, count: int
) -> Iterator[dict[Container, Maker]]:
    """For each format whose weights its artefact is made of: the model's own, or those that are trained now.

    Args:
        work: of the model itself.
        plans: of the formats; none under a budget, where nothing is trained.
        texts: what importance is measured on.
        importance: of the model itself.
        sealed: what the model says.
        digest: hash of `sealed`.
        count: prompts that the artefact without training continues.

    Raises:
        EdgekitError: see :func:`edgekit.dispersing.disperse`.
    """
    if work.options.disperse is None:
        yield dict.fromkeys(work.options.formats, Maker(work, importance))
        return
    before = {plan.container: _without(work, plan, importance, sealed, digest, count) for plan in plans}
    work.original.close()
    with ExitStack() as cleanup:
        yield dict(_trained(work, plans, texts, before, cleanup))


def _without(
    work: Work, plan: Plan, importance: Made | None, sealed: Reference, digest: str, count: int
) -> _Plain:  # fmt: skip
    """Measure the plan's artefact without training; its file goes."""
    work.progress.note(f"{plan.container.upper()}: without training first, to compare with")
    aside = replace(work, folder=work.scratch / f"plain-{plan.container}")
    aside.folder.mkdir()
    item = steps.artefact(aside, plan, importance)
    found = steps.coherence(aside, item, sealed, digest)
    said = steps.continuations(aside, item, sealed, digest, count)
    shutil.rmtree(aside.folder)
    return _Plain(found, said)


def _trained(
    work: Work, plans: Sequence[Plan], texts: Texts, before: Mapping[Container, _Plain], cleanup: ExitStack
) -> Iterator[tuple[Container, Maker]]:
    """Formats whose matrices are on the same grids share a training."""
    from edgekit.training.output import PAGE

    name, recipe = str(work.options.disperse), load(str(work.options.disperse))
    done: dict[str, tuple[Work, Made, reports.Training]] = {}
    for plan in plans:
        kind, plain = plan.container, before[plan.container]
        wish = _wish(work, recipe, Path(name).stem, _grids(plan) if recipe.grid else {})
        key = repr(sorted((wish.grids or {}).items()))
        if key not in done:
            work.progress.note(f"{kind.upper()}: training by the recipe {wish.name}")
            made = _train(work, wish)
            done[key] = (cleanup.enter_context(_child(work, made, wish.name)), made, _told(made))
        child, made, training = done[key]
        (work.folder / REPORTS).mkdir(exist_ok=True)
        shutil.copyfile(made.folder / _MODEL / PAGE, work.folder / REPORTS / f"training-{kind}.html")
        dispersed = reports.Dispersed(training=training, plain=plain.coherence)
        weights = weighing.importance(child, texts)
        child.original.close()  # the next training needs the memory
        yield kind, Maker(child, weights, dispersed, plain.said)


def _wish(work: Work, recipe: Recipe, name: str, grids: Mapping[str, str]) -> Wish:
    from edgekit.dispersing import Wish

    grid = Counter(grids.values()).most_common(1)[0][0] if grids else ""
    given = work.options.train_text or (str(work.options.calibration_text),)
    recipe = msgspec.structs.replace(recipe, grid=grid)
    return Wish(work.checkpoint, recipe, given, name, dict(grids))


def _train(work: Work, wish: Wish) -> Made:
    from edgekit.dispersing import disperse

    stage = Stage("disperse", f"training by the recipe {wish.name}", _inputs(wish))
    title = f"{_slug(work.checkpoint.name)}-{_slug(wish.name)}-{work.stages.key(stage)[:16]}"

    def make(folder: Path) -> None:
        place = _place(work) / title
        anew = work.options.restart
        if anew or not place.is_dir():  # an earlier build may have been killed on the way from there
            disperse(wish, place, work.progress, force=anew, restart=anew)
        _move(place, folder / _MODEL)

    return work.stages.run(stage, make)


def _inputs(wish: Wish) -> dict[str, Any]:
    """Everything that a training depends on beside the model; what a recipe says of itself changes nothing."""
    recipe = {k: v for k, v in msgspec.to_builtins(wish.recipe).items() if k not in ("about", "cost", "gives")}
    text = [[source.name, sources.checksum(source)] for source in sources.find(wish.sources)]
    return {"recipe": recipe, "name": wish.name, "text": text, "grids": dict(sorted((wish.grids or {}).items()))}


def _place(work: Work) -> Path:
    """Folder of what is being trained: one that a killed build leaves behind, where that is possible."""
    if work.options.cache:
        place = cache_dir() / cache.TRAININGS
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            return place
    return work.scratch


def _move(place: Path, to: Path) -> None:
    """As renaming, also to another disk; what is at `place` is whole until it is gone."""
    lock = locks.take(place)
    try:
        place.rename(to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_tree(place, to)
        cache.discard(place)
    finally:
        locks.release(lock)


@contextmanager
def _child(work: Work, made: Made, name: str) -> Iterator[Work]:
    """The stages' work on the trained model, whose answers are compared with those of the model itself."""
    parent = work.checkpoint
    checkpoint = open_checkpoint(
        made.folder / _MODEL, name=f"{parent.name}-{_slug(name)}", source=parent.source, caveat=parent.caveat
    )
    scratch = work.scratch / f"trained-{made.digest[:16]}"
    scratch.mkdir()
    with work.progress.step("checksums of the trained model's files"):
        common = surroundings(checkpoint)
    root = cache_dir() if work.options.cache else None
    stages = Stages(scratch, root, checkpoint.name, common, work.progress, cache.bound())
    original = Original(checkpoint.root, work.progress)
    try:
        yield replace(
            work, checkpoint=checkpoint, scratch=scratch, original=original, stages=stages, parent=work.original
        )
    finally:
        original.close()
        stages.close()


def _told(made: Made) -> reports.Training:
    """The training in a few figures, from its run card."""
    run = msgspec.json.decode((made.folder / _MODEL / record.RUN).read_bytes(), type=record.Run)
    first, last = run.held_out[0], run.held_out[-1]
    return reports.Training(
        recipe=run.name, minutes=run.seconds / 60, text_sha256=run.text.sha256, text_tokens=run.text.tokens,
        held_out_tokens=run.text.held_out, held_out_kl_first=first.kl, held_out_kl_last=last.kl, grids=run.grids,
    )  # fmt: skip
