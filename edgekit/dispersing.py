"""The story of a training: checkpoint → text → matrices on their grid → the whole model → a folder to build from."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit import cache, locks
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.doctor import cpu
from edgekit.errors import MissingDependencyError, OptionError
from edgekit.files import output_errors, refuse_existing, whole_folder
from edgekit.original import versions
from edgekit.progress import Progress, Quiet
from edgekit.stages import code_digest
from edgekit.training import record
from edgekit.training.corpus import Corpus, prepare
from edgekit.training.recipe import Recipe, changed, load
from edgekit.training.record import Model, Run, Text
from edgekit.training.scratch import Scratch, open_scratch, refuse_parented
from edgekit.training.state import Kept

if TYPE_CHECKING:
    from edgekit.training.whole import Result

HELD_OUT = 16
"""Sequences at the text's end that are judged on and never trained on."""


@dataclass(frozen=True)
class Wish:
    """What is to be trained, and how."""

    checkpoint: Checkpoint | Scratch
    recipe: Recipe
    sources: Sequence[str]
    """Of the text, see :func:`edgekit.training.corpus.prepare`."""
    name: str = ""
    """Of the recipe, for the card."""
    grids: Mapping[str, str] | None = None
    """Tensor name → number format; None: the recipe's, for every linear layer of every block."""


def from_scratch(
    config: Path,
    output: Path,
    *,
    text: Sequence[str],
    tokenizer: Path | None = None,
    recipe: str | Path | Recipe = "scratch",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    force: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train a model that does not exist yet, as `edgekit disperse --from-scratch` does.

    Args:
        config: see :func:`edgekit.training.scratch.open_scratch`.
        output: folder of the trained model.
        text: what it is trained on, see :func:`edgekit.training.corpus.prepare`.
        tokenizer: see :func:`edgekit.training.scratch.open_scratch`.
        recipe: of edgekit by name, of a file, or one that is made in a program; its seed draws the weights.
        changes: values that differ from the recipe's, see :func:`edgekit.training.recipe.changed`.
        force: replace an existing output.
        restart: begin anew instead of going on with an interrupted training.
        progress: shows how far it is.

    Raises:
        EdgekitError: one of its kinds, see docs/errors.md; nothing is left at `output` then.
    """
    refuse_existing(output, force)
    chosen = changed(recipe if isinstance(recipe, Recipe) else load(recipe), changes or {})
    refuse_parented(chosen)
    named = "" if isinstance(recipe, Recipe) else Path(recipe).stem
    wish = Wish(open_scratch(config, tokenizer), chosen, tuple(text), named)
    return disperse(wish, output, progress or Quiet(), force=force, restart=restart)


def disperse(wish: Wish, out: Path, progress: Progress, *, force: bool = False, restart: bool = False) -> Run:
    """Train, and write the folder `out`. What an interrupted run has done is kept in `out`.training.

    Raises:
        EdgekitError: one of its kinds, see docs/errors.md; nothing is left at `out` then.
    """
    out = Path(os.path.normpath(Path.cwd() / out))  # "." has no name
    refuse_existing(out, force)
    _refuse_itself(wish, out)
    refuse_missing()
    _refuse_loss(wish)
    from edgekit.training import output
    from edgekit.training.processes import first_process

    kept = Kept(out.with_name(f"{out.name}.training"))
    if not first_process():  # of several that accelerate has launched: it only computes
        return _train(wish, kept, Quiet())[0]
    with _alone(kept.folder, out), cache.using(wish.checkpoint.root):
        if restart:
            kept.clear()
        with output_errors(kept.folder):
            run, made = _train(wish, kept, progress)
        with whole_folder(out, force=force) as folder, progress.step("write the trained model"):
            output.write(folder, out.name, wish.checkpoint, made.weights, made.matrices, run)
            kept.hand_over(folder)
        kept.remove()
    return run


def _refuse_itself(wish: Wish, out: Path) -> None:
    model = wish.checkpoint
    read = {model.root, *((model.path.parent,) if isinstance(model, Scratch) else ())}
    if out.exists() and any(out.samefile(folder) for folder in read):
        raise OptionError(f"{out} is the model itself", expected="another folder for what is trained from it")


@contextmanager
def _alone(folder: Path, out: Path) -> Iterator[None]:
    """Nobody else trains the same."""
    with output_errors(out):
        folder.mkdir(parents=True, exist_ok=True)
    lock = locks.take(folder, wait=False)
    if lock is None:
        raise OptionError(
            f"another training is writing {out}", expected="one at a time", remedy="wait, or give another -o"
        )
    try:
        with output_errors(out):
            Kept(folder).own()
        yield
    finally:
        Kept(folder).leave()
        locks.release(lock)


def _refuse_loss(wish: Wish) -> None:
    """What the loss is made of is refused before hours of training, not after.

    Raises:
        OptionError: no such dispersion loss, layers or temperature; or random weights have a parent.
    """
    if isinstance(wish.checkpoint, Scratch):
        refuse_parented(wish.recipe)
        wish.checkpoint.check()
    from edgekit.dispersion.layers import chosen
    from edgekit.training.objective import dispersion

    if wish.recipe.objective.dispersion:
        chosen(wish.checkpoint.spec.layers, dispersion(wish.recipe.objective).layers)


def grids_of(wish: Wish) -> dict[str, str]:
    """Tensor name → number format of everything that is trained on one."""
    if wish.grids is not None:
        return dict(wish.grids)
    linear = [tensor for tensor in wish.checkpoint.spec.tensors if tensor.rule.kind == "linear"]
    return {tensor.hf: wish.recipe.grid for tensor in linear if tensor.layer is not None and wish.recipe.grid}


def _train(wish: Wish, kept: Kept, progress: Progress) -> tuple[Run, Result]:
    begin, grids, recipe = time.monotonic(), grids_of(wish), _fitted(wish, progress)
    from edgekit.training.processes import count, one_after_the_other
    from edgekit.training.starting import refuse_others

    model = wish.checkpoint
    refuse_others(model.spec, grids)
    tokenizer = load_tokenizer(model.root)
    with one_after_the_other():
        corpus = prepare(
            wish.sources, tokenizer, recipe.length, kept.folder / "text", progress, held_out=HELD_OUT,
            vocab_size=model.spec.vocab_size,
        )  # fmt: skip
        if kept.claim(_settings(wish, recipe, grids, corpus, count())):
            progress.note(f"going on with the training in {kept.folder}")
        begun = model if isinstance(model, Checkpoint) else model.made(kept.folder / "initial", recipe.seed)
    from edgekit.training.whole import Whole

    made = Whole(begun, recipe, grids, corpus, kept, progress, parented=begun is model).run()
    run = Run(
        **_beginning(model, begun, recipe.seed), recipe=recipe, name=wish.name,
        text=Text(
            sources=corpus.sources, sha256=corpus.sha256, tokens=len(corpus.tokens),
            held_out=corpus.held_out * corpus.length,
        ),
        grids=dict(Counter(grids.values())), blocks=made.blocks, points=made.outcome.points, held_out=made.held_out,
        seconds=time.monotonic() - begin + made.outcome.earlier, versions=versions(), machine=cpu(),
        devices=made.outcome.devices, averaged=made.outcome.averaged,
    )  # fmt: skip
    return run, made


def _beginning(model: Checkpoint | Scratch, begun: Checkpoint, seed: int) -> dict[str, Any]:
    """What the run card says of the weights that training began with."""
    if begun is model:
        return {"parent": Model(name=begun.name, sha256=begun.sha256)}
    spec = begun.spec
    return {
        "scratch": record.Scratch(
            name=begun.name, architecture=spec.architecture, parameters=spec.parameters, seed=seed, sha256=begun.sha256
        )
    }


def _fitted(wish: Wish, progress: Progress) -> Recipe:
    longest = wish.checkpoint.spec.context_length
    if wish.recipe.length <= longest:
        return wish.recipe
    progress.note(f"{wish.checkpoint.name} has a context of {longest} tokens: its sequences are as long as that")
    return msgspec.structs.replace(wish.recipe, length=longest)


def refuse_missing() -> None:
    """Check that everything that training needs is installed.

    Raises:
        MissingDependencyError: a package is not.
    """
    for package in ("torch", "transformers", "accelerate", "safetensors"):
        if find_spec(package) is None:
            raise MissingDependencyError(
                f"the package {package} is not installed", remedy="pip install 'edgekit[build]'"
            )


def _settings(wish: Wish, recipe: Recipe, grids: Mapping[str, str], corpus: Corpus, processes: int) -> dict[str, Any]:
    """Everything that the result depends on, each under the name that a user knows it by."""
    known = msgspec.to_builtins(recipe)
    parts = {name: known.pop(name) or {} for name in ("objective", "blockwise", "end_to_end")}
    words = {key: value for key, value in known.items() if key not in ("about", "cost", "gives")}
    settings = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    made = {package: number for package, number in versions().items() if package in ("torch", "transformers")}
    return {
        **words, **settings, **made, "model": wish.checkpoint.sha256, "text": corpus.sha256,
        "grids": dict(sorted(grids.items())), "machine": cpu(), "code": code_digest(), "processes": processes,
    }  # fmt: skip
