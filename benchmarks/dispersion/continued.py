"""Part B: SmolLM2-135M goes on with the same tokens in every arm, then few bits.

    python -m benchmarks.dispersion.continued [MODEL] --text FILE --evaluation FILE [--arm NAME]
        [--tokens 100000] [--work FOLDER] [--out FOLDER]

Each arm is kept in OUT/continued-ARM.json, its trained model in the work folder; what is there is not made again, and a
killed training goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import msgspec
import numpy as np

from benchmarks.dispersion.run import OUT
from benchmarks.dispersion.ways import Ways, Weights
from benchmarks.quality import Originals, originals
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.source import resolve
from edgekit.coherence.distribution import kl_full
from edgekit.coherence.generation import seq_rep
from edgekit.coherence.text import from_file
from edgekit.dispersing import Wish, disperse
from edgekit.dispersion.condensation import measured
from edgekit.engines.base import Ids
from edgekit.engines.torch import TorchEngine
from edgekit.files import cache_dir, sha256
from edgekit.progress import Bars
from edgekit.training.recipe import EndToEnd, Objective, Recipe

GRIDS: Mapping[int, str] = {4: "int4-sym-b32", 3: "int3-sym-b32"}
CHUNKS, LENGTH, CALIBRATION = 24, 256, 32
_PROMPT, _SAID = 16, 64
_SPREAD = {"dispersion": 0.5, "loss": "angular_spread", "temperature": 0.5, "layers": "late_half"}


def arms(tokens: int) -> dict[str, Recipe | None]:
    """Arm → how it is trained; None: not at all."""
    plain = {"cross_entropy": 1.0, "distillation": 0.0}
    end = EndToEnd(train="all", tokens=tokens, batch=4, warmup=0.1)
    found: dict[str, Recipe | None] = {
        "nothing": None,
        "ce": Recipe(objective=msgspec.convert(plain, Objective), end_to_end=end),
        "ce-spread": Recipe(objective=msgspec.convert(plain | _SPREAD, Objective), end_to_end=end),
    }
    for bits, grid in GRIDS.items():
        found[f"distilled-{bits}"] = Recipe(grid=grid, end_to_end=end)
        spread = msgspec.convert(_SPREAD, Objective)
        found[f"distilled-spread-{bits}"] = Recipe(grid=grid, objective=spread, end_to_end=end)
    return found


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The model with one change."""

    change: str
    """"none", or how it was rounded and to how many bits."""
    kl_parent: float
    """From the published model, nats per token."""
    kl_own: float
    """From the arm's own weights; of a model on a grid: 0."""
    ce: float
    seq_rep_4: float
    sample: str


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """What an arm gave."""

    name: str
    model: str
    model_sha256: str
    tokens: int
    text_sha256: str
    evaluation_sha256: str
    mean_cosine: tuple[float, ...]
    minutes: float
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Judge:
    """What all arms are judged by."""

    chunks: Sequence[Ids]
    parent: Originals
    calibration: Sequence[Ids]
    work: Path

    def rows(self, checkpoint: Checkpoint, *, trained: bool) -> tuple[tuple[float, ...], tuple[Row, ...]]:
        """Mean cosines, and the model as it is; rounded as well unless it was `trained` on its grid."""
        with closing(TorchEngine(checkpoint.root)) as engine:
            cosines = tuple(float(f"{layer.mean_cosine:.6g}") for layer in measured(
                engine.states, self.chunks, lambda _done, _all: None
            ))  # fmt: skip
            folder = self.work / "own"
            shutil.rmtree(folder, ignore_errors=True)
            own = originals(checkpoint, self.chunks, folder)
            ways = Ways(checkpoint, engine, self.calibration)
            found = []
            for change, weights in self._changes(ways, trained=trained):
                with ways.changed(weights):
                    found.append(self._row(engine, checkpoint, change, own))
                print(f"{checkpoint.name} {found[-1]}", flush=True)
            shutil.rmtree(folder)
        return cosines, tuple(found)

    def _changes(self, ways: Ways, *, trained: bool) -> Iterator[tuple[str, Weights]]:
        yield "none", {}
        for bits, grid in GRIDS.items() if not trained else ():
            yield f"nearest-{bits}", ways.nearest(grid)
            yield f"gptq-{bits}", ways.gptq(grid)

    def _row(self, engine: TorchEngine, checkpoint: Checkpoint, change: str, own: Originals) -> Row:
        parents, owns, losses = [], [], []
        for number, ids in enumerate(self.chunks):
            said = engine.logits(ids)
            parents.append(float(kl_full(self.parent[number], said).mean()))
            owns.append(float(kl_full(own[number], said).mean()))
            top = said.max(axis=-1, keepdims=True)
            picked = said[np.arange(len(ids) - 1), ids[1:]] - top[:-1, 0]
            losses.append(float((np.log(np.exp(said[:-1] - top[:-1]).sum(axis=-1)) - picked).mean()))
        prompts = [ids[:_PROMPT].tolist() for ids in self.chunks]
        made = engine.greedy_batch(prompts, _SAID, frozenset(), lambda _done, _all: None)
        return Row(
            change=change, kl_parent=float(np.mean(parents)), kl_own=float(np.mean(owns)), ce=float(np.mean(losses)),
            seq_rep_4=float(np.mean([seq_rep(ids) for ids in made])),
            sample=load_tokenizer(checkpoint.root).decode(made[0]),
        )  # fmt: skip


def run(name: str, recipe: Recipe | None, parent: Checkpoint, judge: Judge, options: argparse.Namespace) -> None:
    """One arm, unless it is there."""
    path = options.out / f"continued-{name}.json"
    if path.is_file():
        return
    begin, checkpoint = monotonic(), parent
    if recipe is not None:
        place = options.work / f"continued-{name}"
        if not place.is_dir():
            disperse(Wish(parent, recipe, [str(options.text)], f"experiment {name}"), place, Bars())
        checkpoint = open_checkpoint(place)
    minutes = (monotonic() - begin) / 60
    cosines, rows = judge.rows(checkpoint, trained=recipe is not None and bool(recipe.grid))
    arm = Arm(
        name=name, model=parent.name, model_sha256=parent.sha256, tokens=options.tokens if recipe else 0,
        text_sha256=sha256(options.text), evaluation_sha256=sha256(options.evaluation), mean_cosine=cosines,
        minutes=minutes, rows=rows,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_bytes(msgspec.json.format(msgspec.json.encode(arm), indent=1) + b"\n")
    path.with_suffix(".part").rename(path)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--arm", choices=list(arms(1)))
    parser.add_argument("--work", type=Path, default=cache_dir() / "dispersion-experiment")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    parent = resolve(options.model)
    tokenizer = load_tokenizer(parent.root)
    chunks = from_file(options.evaluation, tokenizer.encode, CHUNKS, LENGTH, bos=None).sequences
    calibration = from_file(options.text, tokenizer.encode, CALIBRATION, LENGTH, bos=None).sequences
    options.work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.work / "parent", ignore_errors=True)
    judge = Judge(chunks, originals(parent, chunks, options.work / "parent"), calibration, options.work)
    for name, recipe in arms(options.tokens).items():
        if options.arm in (None, name):
            run(name, recipe, parent, judge, options)
    shutil.rmtree(options.work / "parent")


if __name__ == "__main__":
    main()
