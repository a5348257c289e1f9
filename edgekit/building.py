"""The story of a build, top to bottom: checkpoint → plan → reference → artefacts → parity → coherence → bundle."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edgekit import cache, disperse_stage, mapping, refining, steps, weighing
from edgekit.bundle import bundle as bundles
from edgekit.bundle import manifest
from edgekit.bundle.said import seal_said
from edgekit.bundle.target import seal_target
from edgekit.bundle.tokenizer import Tokenizer, load_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.coherence import gates, metrics, reference, text
from edgekit.crossbuild import sbom
from edgekit.disperse_stage import Maker
from edgekit.errors import OptionError
from edgekit.export.foreign import Foreign, plan_of
from edgekit.files import cache_dir, output_errors, temporary_folder, whole_folder
from edgekit.grids.onnx import PORTABLE
from edgekit.options import Container, Options
from edgekit.original import Original, Texts
from edgekit.progress import Progress, Stopwatch
from edgekit.quantize import trained
from edgekit.quantize.choose import choose
from edgekit.quantize.importance import Importance
from edgekit.quantize.plan import Plan, refuse_fallbacks
from edgekit.quantize.plan_file import follow
from edgekit.quantize.plan_file import read as read_plan
from edgekit.quantize.predict import predict, refuse_too_big
from edgekit.quantize.sensitivity_map import SensitivityMap, chosen
from edgekit.records import Record, Result
from edgekit.report import model as reports
from edgekit.stages import Made, Stages
from edgekit.steps import Artefact, Proof, Work, surroundings
from edgekit.targets import Target, coherence_limits

SAMPLES = 3


def bundle_name(checkpoint: Checkpoint, target: Target, options: Options) -> str:
    """Folder name of the bundle; bits other than the default 4 are named as requested, never as achieved."""
    suffix = "" if options.bits == 4 else f".bits{options.bits}"
    if options.budget is not None:
        suffix = f".{options.budget.suffix}"
    elif options.plan is not None:
        suffix = ".planned"
    if options.active is not None:
        suffix += f".active{options.active:g}"
    return f"{checkpoint.name.lower()}.{target.name}{suffix}{disperse_stage.suffix(options)}"


def plans(checkpoint: Checkpoint, target: Target, options: Options) -> list[Plan]:
    """One plan a format that edgekit exports by itself, checked against --strict and the target's memory.

    What somebody else's exporter converts is planned when it is converted: its file says which tensors there are.

    Raises:
        StrictError, DoesNotFitError, GridError, OptionError.
    """
    own = [container for container in options.formats if not options.converts(container)]
    if options.plan is not None:
        listed = read_plan(options.plan)
        followed = [follow(listed, checkpoint, target, name) for name in own]
        _refuse_own_operators(followed, options)
        return [_checked(plan, checkpoint, target, options) for plan in followed]
    return [
        _checked(
            choose(checkpoint.spec, target, container, options.bits, portable=options.portable),
            checkpoint, target, options,
        )
        for container in own
    ]  # fmt: skip


def _refuse_own_operators(made: Sequence[Plan], options: Options) -> None:
    """A plan file may name what --portable is to keep out."""
    for plan in made:
        if options.portable and (own := plan.own_operators):
            raise OptionError(
                f"--portable is given, and {options.plan} has {own[0].tensor.hf} in {own[0].grid}",
                expected="formats that stock onnxruntime reads",
                remedy=f"drop --portable, or write {own[0].grid}{PORTABLE} in the plan",
            )


def _refuse_unmet(checkpoint: Checkpoint, target: Target, options: Options) -> list[Plan]:
    """No plans yet: they follow when sensitivity is known. What needs no measurement is checked before."""
    for container in options.formats:
        chosen(options.sensitivity, checkpoint, container)
        if options.budget is not None:
            refining.refuse_unmet(checkpoint, target, container, options.budget)
    return []


def _checked(plan: Plan, checkpoint: Checkpoint, target: Target, options: Options) -> Plan:
    if options.strict:
        refuse_fallbacks(plan)
    refuse_too_big(checkpoint.spec, plan, target)
    return plan


def _all_plans(
    work: Work, planned: Sequence[Plan], sources: Mapping[Container, Foreign | None], target: Target
) -> list[Plan]:
    """`planned` and those of the converted files, in the order of the formats."""
    found = {plan.container: plan for plan in planned}
    for container, source in sources.items():
        if source is not None:
            plan = plan_of(source.converted, source.spec, target, work.options.bits)
            found[container] = _checked(plan, work.checkpoint, target, work.options)
    return [found[container] for container in work.options.formats]


def build(checkpoint: Checkpoint, target: Target, out: Path, options: Options, progress: Progress) -> reports.Report:
    """Build the bundle `out`. It appears under that name only when it is whole and every parity check has passed.

    Stages that an earlier or interrupted build finished come from the cache.

    Raises:
        EdgekitError: one of its kinds, see docs; nothing is left at `out` then.
    """
    watch = Stopwatch(progress)
    trained.places(checkpoint)  # what is wrong with them is told before anything is made
    planned = (plans if options.budget is None else _refuse_unmet)(checkpoint, target, options)
    disperse_stage.refuse(planned, options)
    if options.active is not None:
        from edgekit import skipping  # brings PyTorch, which a build out of the cache does without

        skipping.refuse(planned, options)
    with whole_folder(out, force=options.force) as folder, _work(checkpoint, folder, out, options, watch) as work:
        sources = {container: steps.converted(work, container) for container in options.formats}
        planned = _all_plans(work, planned, sources, target) if options.budget is None else []
        carried = steps.runtime(work, target, planned)
        texts = steps.texts(work)
        importance = weighing.importance(work, texts)
        sealed, digest = steps.sealed(work, texts)
        if options.active is not None:
            from edgekit import skipping

            planned = [skipping.gated_plan(work, plan, texts, options.active) for plan in planned]
        with disperse_stage.makers(work, planned, texts, importance, sealed, digest, SAMPLES) as makers:
            made = [_artefact(makers[plan.container], plan, sources[plan.container]) for plan in planned]
            if options.budget is not None:
                made = [
                    _under_budget(work, target, kind, texts, importance, sealed, digest) for kind in options.formats
                ]
            steps.check_tokenizers(work, made)
            results = _results(makers, made, sealed, digest, target)
            each = [steps.continuations(_of(makers, item).work, item, sealed, digest, SAMPLES) for item in made]
        said = dict(zip(options.formats, each, strict=True))
        weighed = weighing.source(importance)
        record = Record(checkpoint, target, options, out.name, results, texts, sealed, carried, weighed)
        report = record.report(_samples(sealed, work.tokenizer, said, makers), watch.seconds)
        _write(record, report, folder, said)
        with watch.step("checksums"):
            bundles.write_manifest(folder, record.manifest())
    return report


def _artefact(maker: Maker, plan: Plan, source: Foreign | None) -> Artefact:
    return steps.artefact(maker.work, plan, maker.importance, source)


def _of(makers: Mapping[Container, Maker], item: Artefact) -> Maker:
    return makers[item.built.plan.container]


def _results(
    makers: Mapping[Container, Maker], made: Sequence[Artefact], sealed: reference.Reference, digest: str,
    target: Target,
) -> list[Result]:  # fmt: skip
    """Prove all, then measure all: the full-precision models are in memory for the former only."""
    proofs, used = [], makers[made[0].built.plan.container].work
    for item in made:
        work = _of(makers, item).work
        if work is not used:
            used.original.close()
        proofs.append(steps.prove(work, item, sealed, digest))
        used = work
    used.original.close()
    measured = [steps.coherence(_of(makers, item).work, item, sealed, digest) for item in made]
    return [
        _judged(item, proof, coherence, _of(makers, item), target)
        for item, proof, coherence in zip(made, proofs, measured, strict=True)
    ]


def sensitivity_of(
    checkpoint: Checkpoint, container: Container, options: Options, progress: Progress, target: Target | None = None
) -> SensitivityMap:
    """The sensitivity map of the options' files, otherwise a measured one; builds nothing.

    Raises:
        EdgekitError: see :func:`edgekit.mapping.sensitivity`.
    """
    if given := chosen(options.sensitivity, checkpoint, container):
        return given
    with apart(checkpoint, options, progress) as work:
        made = steps.texts(work)
        return mapping.sensitivity(work, made, weighing.importance(work, made), container, target)


def importance_of(checkpoint: Checkpoint, options: Options, progress: Progress) -> tuple[Importance, text.EvalText]:
    """The importance that a build with these options measures, and the text that it is measured on.

    Raises:
        TextError, BadWeightsError, OptionError: as :func:`edgekit.steps.texts`, :func:`edgekit.weighing.importance`.
    """
    with apart(checkpoint, options, progress) as work:
        made = steps.texts(work)
        found = weighing.load_importance(weighing.importance(work, made))
        if found is None or made.calibration is None:
            raise OptionError("without calibration there is no importance", remedy="drop --no-calibration")
        return found, made.calibration


@contextmanager
def apart(checkpoint: Checkpoint, options: Options, progress: Progress) -> Iterator[Work]:
    """The stages' work where no bundle is built."""
    base = cache_dir() if options.cache else Path(tempfile.gettempdir())
    with output_errors(base):
        base.mkdir(parents=True, exist_ok=True)
        with temporary_folder(base / "sensitivity") as place:
            (place / "bundle").mkdir()
            with _work(checkpoint, place / "bundle", place / "bundle", options, progress) as work:
                yield work


@contextmanager
def _work(checkpoint: Checkpoint, folder: Path, out: Path, options: Options, progress: Progress) -> Iterator[Work]:
    """What the stages share: a scratch folder beside `out`, the cache, the full-precision model (not loaded yet)."""
    tokenizer = _copy_tokenizer(checkpoint, folder)
    bound = cache.bound()
    with progress.step("checksums of the model's files"):
        common = surroundings(checkpoint)
    with temporary_folder(out) as scratch, ExitStack() as cleanup:
        root = cache_dir() if options.cache else None
        stages = Stages(scratch, root, checkpoint.name, common, progress, bound)
        cleanup.callback(stages.close)
        cleanup.enter_context(cache.using(checkpoint.root))
        original = Original(checkpoint.root, progress)
        cleanup.callback(original.close)
        yield Work(checkpoint, options, folder, scratch, tokenizer, original, stages, progress)


def _under_budget(
    work: Work, target: Target, kind: Container, texts: Texts, importance: Made | None, sealed: reference.Reference,
    digest: str,
) -> Artefact:  # fmt: skip
    """The artefact whose plan keeps to the budget, as built and measured."""
    found = mapping.sensitivity(work, texts, importance, kind, target)

    def make(plan: Plan) -> Artefact:
        return steps.artefact(work, _checked(plan, work.checkpoint, target, work.options), importance)

    def measure(item: Artefact) -> float:
        return steps.coherence(work, item, sealed, digest).kl_mean

    if (budget := work.options.budget) is None:
        raise ValueError("there is no budget")
    return refining.settle(
        budget, refining.allot(work.checkpoint, target, kind, found), make, measure,
        lambda item: shutil.rmtree(item.built.path.parent),
    )  # fmt: skip


def _copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> Tokenizer:
    shipped = folder / manifest.TOKENIZER
    shipped.mkdir()
    for path in checkpoint.tokenizer_files():
        (shipped / path.name).write_bytes(path.read_bytes())
    return load_tokenizer(shipped)


def _judged(item: Artefact, proof: Proof, coherence: metrics.Coherence, maker: Maker, target: Target) -> Result:
    plan = item.built.plan
    verdict = gates.judge(coherence, coherence_limits(target, plan.bits))
    prediction = predict(maker.work.checkpoint.spec, plan, target)
    return Result(item.built, prediction, proof.parity, proof.truncation_kl, coherence, verdict, maker.dispersed)


def _samples(
    sealed: reference.Reference, tokenizer: Tokenizer, said: Mapping[Container, Sequence[Sequence[int]]],
    makers: Mapping[Container, Maker],
) -> list[reports.Sample]:  # fmt: skip
    """The first prompts' continuations side by side, for a person to read; `said` is ids by format."""
    originals = [tokenizer.decode(ids.tolist()) for ids in sealed.continuations.lists()[:SAMPLES]]
    questions = [prompt.text for prompt in text.fixed_prompts()[:SAMPLES]]
    return [
        reports.Sample(
            prompt=question,
            original=original,
            artefacts={name: tokenizer.decode(told[index]) for name, told in said.items()},
            plain={name: tokenizer.decode(maker.plain[index]) for name, maker in makers.items() if maker.plain},
        )
        for index, (question, original) in enumerate(zip(questions, originals, strict=True))
    ]


def _write(
    record: Record, report: reports.Report, folder: Path, said: Mapping[Container, Sequence[Sequence[int]]]
) -> None:
    """What the bundle holds beside artefacts, reference and runtime."""
    from edgekit.report.html import render

    seal_target(folder, record.target)
    seal_said(folder, said)
    if record.runtime is not None:
        sbom.write(folder, record.runtime, record.model)
    (folder / "report.json").write_bytes(reports.to_json(report))
    (folder / "report.html").write_text(render(report), encoding="utf8")


__all__ = ["Options", "build", "bundle_name", "plans"]
