"""The stages of a build, each with everything its result depends on; a new one is one more function here.

A stage's inputs name what goes in by the hash of its content. The model, edgekit's code, the packages' versions and the
machine go into every key (:func:`surroundings`). The target's limits and everything else that only judges or words a
result stay out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edgekit.bundle import manifest
from edgekit.bundle.golden import CORPUS, GOLDEN
from edgekit.bundle.tokenizer import Tokenizer
from edgekit.checkpoint.checkpoint import CODES, Checkpoint
from edgekit.coherence import container, metrics, reference, text
from edgekit.coherence.likeness import LIKE, known_tokens
from edgekit.crossbuild.runtime_record import RuntimeRecord
from edgekit.doctor import cpu
from edgekit.engines.base import greedy
from edgekit.engines.opening import open_engine
from edgekit.export import artefacts, parity
from edgekit.export.artefacts import Built
from edgekit.export.foreign import Foreign
from edgekit.files import copy_tree, sha256
from edgekit.hashes import remembered_sha256
from edgekit.machine import cores
from edgekit.options import Container, Options
from edgekit.original import Original, Texts, make_texts, seal, versions
from edgekit.progress import Progress
from edgekit.quantize.groups import stock
from edgekit.quantize.plan import Plan
from edgekit.report import model as reports
from edgekit.rounding import rounded, set_aside
from edgekit.stages import Made, Stage, Stages, code_digest
from edgekit.targets import Target
from edgekit.weighing import load_importance

PARITY_SEQUENCES = 2
_PLANNED = "planned.json"


@dataclass(frozen=True)
class Work:
    """What the stages of a build share."""

    checkpoint: Checkpoint
    options: Options
    folder: Path
    """The bundle in the making."""
    scratch: Path
    """For what is needed on the way, on the same disk."""
    tokenizer: Tokenizer
    original: Original
    stages: Stages
    progress: Progress
    parent: Original | None = None
    """Whose answers the reference holds, where the checkpoint was trained from it."""


@dataclass(frozen=True)
class Artefact:
    """An artefact in the bundle, and the hash of its files."""

    built: Built
    digest: str

    @property
    def kind(self) -> str:
        """For people: GGUF or ONNX."""
        return self.built.plan.container.upper()


class Proof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the parity checks of an artefact measured."""

    parity: reports.Parity
    truncation_kl: float
    """Error of the sealed reference's estimate, nats."""


def surroundings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What every stage depends on: the model's files, edgekit's code, the packages' versions, the machine.

    The machine counts because kernels round differently on another processor or with another number of threads, and
    because a report names the machine that measured.
    """
    return {
        "model": model_digests(checkpoint), "name": checkpoint.name, "code": code_digest(), "versions": versions(),
        "machine": cpu(), "cores": cores(), "threads": os.environ.get("OMP_NUM_THREADS"),
    }  # fmt: skip


def model_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """File name (what is not UTF-8, escaped) → SHA-256 of all in the model's folder that a library may read."""
    patterns = ("*.json", "*.jinja", "*.txt", "*.model", "*/*.jinja", CODES)
    small = {path for pattern in patterns for path in checkpoint.root.glob(pattern) if path.is_file()}
    found = {_as_text(path.relative_to(checkpoint.root)): remembered_sha256(path) for path in sorted(small)}
    return {**found, "weights": checkpoint.sha256}


def _as_text(path: Path) -> str:
    """The path as JSON can hold it: a file name may be no UTF-8."""
    return os.fsencode(path).decode("utf8", "backslashreplace")


# -- what the full-precision model is asked


class _Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["self-generated", "file"]
    sha256: str
    sequences: list[list[int]]


class _Texts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    evaluation: _Text
    calibration: _Text | None


def texts(work: Work) -> Texts:
    """The evaluation and the calibration text, generated or cut from the user's files.

    Raises:
        TextError: a text file is missing, empty, not UTF-8, binary or too short.
    """
    options = replace(work.options, length=min(work.options.length, work.checkpoint.spec.context_length))
    stage = Stage("texts", "text: evaluation and calibration", {
        "text": _file_digest(options.text), "calibrate": options.calibrate,
        "calibration_text": _file_digest(options.calibration_text), "sequences": options.sequences,
        "length": options.length, "seed": options.seed,
    })  # fmt: skip

    def make() -> _Texts:
        made = make_texts(work.original.engine, work.tokenizer, options, work.progress)
        calibration = None if made.calibration is None else _packed(made.calibration)
        return _Texts(evaluation=_packed(made.evaluation), calibration=calibration)

    found, _ = work.stages.record(stage, _Texts, make)
    made = Texts(_unpacked(found.evaluation), None if found.calibration is None else _unpacked(found.calibration))
    _warn_of_strange(made, work.progress)
    return made


def _warn_of_strange(made: Texts, progress: Progress) -> None:
    """Say that the calibration text is of another language, or code instead of prose, than the model is judged on."""
    if made.calibration is None or {made.calibration.kind, made.evaluation.kind} == {"self-generated"}:
        return
    share = known_tokens(made.calibration.sequences, made.evaluation.sequences)
    if share is not None and share < LIKE:
        progress.note(
            f"only {share:.0%} of the calibration text's tokens occur in the evaluation text: if it is of another "
            "language or kind than the model will meet, calibrate with other text; if not, give such --text, too"
        )


def _file_digest(path: Path | None) -> str | None:
    return sha256(path) if path is not None and path.is_file() else None


def _packed(made: text.EvalText) -> _Text:
    return _Text(kind=made.kind, sha256=made.sha256, sequences=[ids.tolist() for ids in made.sequences])


def _unpacked(found: _Text) -> text.EvalText:
    return text.EvalText(tuple(np.array(ids, np.int64) for ids in found.sequences), found.kind, found.sha256)


def _ids(made: text.EvalText) -> list[list[int]]:
    return [ids.tolist() for ids in made.sequences]


def sealed(work: Work, made: Texts) -> tuple[reference.Reference, str]:
    """The sealed reference, put into the bundle, and its digest."""
    inputs = {"text": _ids(made.evaluation), "text_sha256": made.evaluation.sha256, "kind": made.evaluation.kind,
              "seed": work.options.seed}  # fmt: skip
    stage = Stage("reference", "reference: what the full-precision model says", inputs)

    def make(folder: Path) -> None:
        original, seed = work.original.engine(), work.options.seed
        found = seal(original, work.checkpoint, work.tokenizer, made.evaluation, seed, work.progress)
        container.save(found, folder / manifest.REFERENCE)

    stored = work.stages.run(stage, make)
    found = container.load(stored.folder / manifest.REFERENCE)
    stored.deliver(manifest.REFERENCE, work.folder / manifest.REFERENCE)
    return found, stored.digest


# -- the board's engines


def runtime(work: Work, target: Target, planned: Sequence[Plan]) -> RuntimeRecord | None:
    """The engines for the board, put into the bundle and audited; None when there are to be none.

    What is compiled has a cache of its own (:mod:`edgekit.crossbuild.native`): it does not depend on the model.

    Raises:
        ToolchainError, WheelError, AuditError, MissingDependencyError.
    """
    wanted = work.options.runtime
    if wanted is None:
        return None
    if target.toolchain is None:
        work.progress.note(f"{target.title}: the engines that are installed here run the bundle, none are put into it")
        return None
    from edgekit.crossbuild.package import package

    # Under a budget there is no plan yet: what it may choose from counts.
    may_choose = work.options.budget is not None and "onnx" in work.options.formats and stock(target) != target
    operators = may_choose or any(plan.own_operators for plan in planned)
    return package(target, work.options.formats, work.folder, wanted, work.progress, operators=operators)


# -- artefacts


def converted(work: Work, kind: Container) -> Foreign | None:
    """The full-precision file that somebody else's exporter makes; None where edgekit exports by itself.

    Raises:
        EdgekitError: see :func:`edgekit.export.hatches.convert`.
    """
    if not work.options.converts(kind):
        return None
    from edgekit.export import hatches

    stage = Stage(f"convert-{kind}", f"{kind.upper()}: convert", {"by": hatches.identity(kind, work.options)})
    made = work.stages.run(
        stage, lambda folder: hatches.convert(kind, work.checkpoint, work.options, folder, work.progress)
    )
    return hatches.opened(kind, work.checkpoint, made.folder, work.scratch, made.digest)


def artefact(work: Work, plan: Plan, weights: Made | None, foreign: Foreign | None = None) -> Artefact:
    """One quantized artefact, put into the bundle.

    `weights` is what :func:`edgekit.weighing.importance` returned, `foreign` what :func:`converted` did.
    """
    codes, digest = rounded(work, plan, weights) if foreign is None else set_aside(work)
    planned = [
        [entry.tensor.hf, entry.grid, entry.requested_bits, entry.nbytes, entry.threshold] for entry in plan.entries
    ]
    inputs = {"bits": plan.bits, "accuracy_level": plan.accuracy_level, "session": plan.session, "plan": planned,
              "importance": weights and weights.digest, "converted": foreign and foreign.key,
              "rounded": digest}  # fmt: skip
    stage = Stage(plan.container, f"{plan.container.upper()}: quantize and write", inputs)

    def make(folder: Path) -> None:
        found = load_importance(weights)
        built = artefacts.write(work.checkpoint, plan, folder, work.scratch, work.progress, found, foreign, codes)
        (folder / _PLANNED).write_bytes(msgspec.json.encode(built.planned))

    made = work.stages.run(stage, make)
    digests = msgspec.json.decode((made.folder / _PLANNED).read_bytes(), type=dict[str, str])
    made.deliver(plan.container, work.folder / plan.container)
    path = work.folder / plan.container / f"model.{plan.container}"
    twin = artefacts.full_precision_path(plan.container, work.scratch)
    twin = foreign.converted.path if foreign else twin
    ways = codes.shares((entry.tensor.hf, entry.tensor.shape) for entry in plan.entries if entry.tensor.rule.matrix)
    return Artefact(Built(plan, path, twin, digests, foreign, ways), made.digest)


def check_tokenizers(work: Work, made: Sequence[Artefact]) -> None:
    """Compare all tokenizers on the golden corpus; the ids go into the bundle.

    Raises:
        ParityError, TokenizerError: see :func:`edgekit.export.parity.check_tokenizer`.
    """
    own = {"gguf": [item.digest for item in made if item.built.plan.container == "gguf"]}
    title = "tokenizer: compare the golden corpus"
    shipped = work.folder / manifest.TOKENIZER

    def make(folder: Path) -> None:
        with work.progress.step(title):
            copy = copy_tree(shipped, folder / manifest.TOKENIZER)
            with artefacts.tokenizer_sides([item.built for item in made]) as sides:
                parity.check_tokenizer(work.checkpoint.root, copy, sides)
            (copy / GOLDEN).rename(folder / GOLDEN)
            shutil.rmtree(copy)

    work.stages.run(Stage("tokenizer", title, own), make).deliver(GOLDEN, shipped / GOLDEN)


def prove(work: Work, item: Artefact, answers: reference.Reference, digest: str) -> Proof:
    """Check the artefact's bytes and logits. `digest` is that of `answers`.

    Raises:
        ParityError: names the tensor or token.
    """
    stage = Stage("parity", f"{item.kind}: parity with the original", {
        "artefact": item.digest, "reference": digest, "sequences": PARITY_SEQUENCES,
    })  # fmt: skip
    return work.stages.record(stage, Proof, lambda: _measured(work, item.built, answers))[0]


def _measured(work: Work, built: Built, answers: reference.Reference) -> Proof:
    tensors = artefacts.check_bytes(work.checkpoint, built, work.progress)
    sequences = answers.sequences.lists()[:PARITY_SEQUENCES]
    rows = [answers.positions.rows(where) for where in answers.sequence_rows()[:PARITY_SEQUENCES]]
    answered = None
    if work.parent is not None:
        answered = parity.all_logits(work.parent.engine(), sequences)
        work.parent.close()
    engine = work.original.engine()
    logits = artefacts.check_logits(work.checkpoint, built, engine, sequences, rows, work.progress, answered)
    found = reports.Parity(
        tokenizer_strings=len(CORPUS), tensors=tensors, full_precision_kl=logits.full_precision_kl,
        activation_kl=logits.activation_kl, positions=sum(map(len, sequences)),
    )  # fmt: skip
    return Proof(parity=found, truncation_kl=logits.truncation_kl)


# -- measurements


def coherence(work: Work, item: Artefact, answers: reference.Reference, digest: str) -> metrics.Coherence:
    """Measure the artefact against the reference, whose digest is `digest`. Judging is not part of it."""
    title = f"{item.kind}: coherence in {artefacts.ENGINES[item.built.plan.container]}"

    def make() -> metrics.Coherence:
        engine = open_engine(item.built.plan.container, item.built.path, context=answers.longest)
        try:
            with work.progress.step(title) as advance:
                return metrics.evaluate(engine, answers, progress=advance)
        finally:
            engine.close()

    stage = Stage("coherence", title, {"artefact": item.digest, "reference": digest})
    return work.stages.record(stage, metrics.Coherence, make)[0]


def continuations(work: Work, item: Artefact, answers: reference.Reference, digest: str, count: int) -> list[list[int]]:
    """Token ids of what the artefact says, greedily, to the first `count` prompts of the reference."""
    title = f"{item.kind}: samples"

    def make() -> list[list[int]]:
        engine = open_engine(item.built.plan.container, item.built.path, context=answers.longest)
        try:
            with work.progress.step(title):
                limit, stop = answers.meta.token_limit, answers.stop
                return [list(greedy(engine, ids, limit, stop)) for ids in answers.prompts.lists()[:count]]
        finally:
            engine.close()

    stage = Stage("continuations", title, {"artefact": item.digest, "reference": digest, "count": count})
    return work.stages.record(stage, list[list[int]], make)[0]
