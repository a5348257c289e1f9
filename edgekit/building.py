"""The story of a build, top to bottom: checkpoint → plan → reference → artefacts → parity → coherence → bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgekit.bundle import bundle as bundles
from edgekit.bundle import manifest
from edgekit.bundle.golden import CORPUS
from edgekit.bundle.tokenizer import Tokenizer, load_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.coherence import gates, metrics, reference, text
from edgekit.coherence.container import save
from edgekit.engines.base import greedy
from edgekit.engines.opening import open_engine
from edgekit.engines.torch import TorchEngine
from edgekit.export import artefacts, parity
from edgekit.export.artefacts import Built
from edgekit.files import whole_folder
from edgekit.options import Options
from edgekit.original import calibrate, make_texts, seal
from edgekit.progress import Progress, Stopwatch
from edgekit.quantize.choose import choose
from edgekit.quantize.plan import Plan, refuse_fallbacks
from edgekit.quantize.predict import predict, refuse_too_big
from edgekit.records import Record, Result
from edgekit.report import model as reports
from edgekit.targets import Target, coherence_limits

PARITY_SEQUENCES = 2
SAMPLES = 3


def bundle_name(checkpoint: Checkpoint, target: Target, options: Options) -> str:
    """Folder name of the bundle; bits other than the default 4 are named as requested, never as achieved."""
    suffix = "" if options.bits == 4 else f".bits{options.bits}"
    return f"{checkpoint.name.lower()}.{target.name}{suffix}"


def plans(checkpoint: Checkpoint, target: Target, options: Options) -> list[Plan]:
    """One plan a format, checked against --strict and the target's memory.

    Raises:
        StrictError, DoesNotFitError, GridError, OptionError.
    """
    made = [choose(checkpoint.spec, target, container, options.bits) for container in options.formats]
    for plan in made:
        if options.strict:
            refuse_fallbacks(plan)
        refuse_too_big(checkpoint.spec, plan, target)
    return made


def build(checkpoint: Checkpoint, target: Target, out: Path, options: Options, progress: Progress) -> reports.Report:
    """Build the bundle `out`. It appears under that name only when it is whole and every parity check has passed.

    Raises:
        EdgekitError: one of its kinds, see docs; nothing is left at `out` then.
    """
    watch = Stopwatch(progress)
    planned = plans(checkpoint, target, options)
    with whole_folder(out, force=options.force) as folder:
        tokenizer = _copy_tokenizer(checkpoint, folder)
        with watch.step("load the full-precision model"):
            original = TorchEngine(checkpoint.root)
        texts = make_texts(original, tokenizer, options, watch)
        importance = calibrate(original, checkpoint, texts, watch)
        sealed = seal(original, checkpoint, tokenizer, texts.evaluation, options.seed, watch)
        save(sealed, folder / manifest.REFERENCE)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.tmp-") as tmp:
            scratch = Path(tmp)
            built = [artefacts.write(checkpoint, plan, folder, scratch, watch, importance) for plan in planned]
            _check_tokenizers(checkpoint, built, folder, watch)
            proofs = [_prove(checkpoint, item, original, sealed, watch) for item in built]
        original.close()
        results = [
            _judge(item, *proof, sealed, checkpoint, target, watch) for item, proof in zip(built, proofs, strict=True)
        ]
        samples = _samples(sealed, tokenizer, built, watch)
        record = Record(checkpoint, target, options, out.name, results, texts, sealed)
        report = record.report(samples, watch.seconds)
        _write_reports(report, folder)
        with watch.step("checksums"):
            bundles.write_manifest(folder, record.manifest())
    return report


def _copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> Tokenizer:
    shipped = folder / manifest.TOKENIZER
    shipped.mkdir()
    for path in checkpoint.tokenizer_files():
        (shipped / path.name).write_bytes(path.read_bytes())
    return load_tokenizer(shipped)


def _check_tokenizers(checkpoint: Checkpoint, built: Sequence[Built], folder: Path, progress: Progress) -> None:
    with progress.step("tokenizer: compare the golden corpus"):
        parity.check_tokenizer(checkpoint.root, folder / manifest.TOKENIZER, artefacts.tokenizer_sides(built))


def _prove(
    checkpoint: Checkpoint, built: Built, original: TorchEngine, sealed: reference.Reference, progress: Progress
) -> tuple[reports.Parity, float]:
    """Bytes and logits are what they should be; also the error of the sealed reference's estimate, nats."""
    tensors = artefacts.check_bytes(checkpoint, built, progress)
    sequences = sealed.sequences.lists()[:PARITY_SEQUENCES]
    rows = [sealed.positions.rows(where) for where in sealed.sequence_rows()[:PARITY_SEQUENCES]]
    logits = artefacts.check_logits(checkpoint, built, original, sequences, rows, progress)
    found = reports.Parity(
        tokenizer_strings=len(CORPUS), tensors=tensors, full_precision_kl=logits.full_precision_kl,
        activation_kl=logits.activation_kl, positions=sum(map(len, sequences)),
    )  # fmt: skip
    return found, logits.truncation_kl


def _judge(
    built: Built,
    found: reports.Parity,
    truncation_kl: float,
    sealed: reference.Reference,
    checkpoint: Checkpoint,
    target: Target,
    progress: Progress,
) -> Result:
    """Measure the artefact against the reference and compare with the target's limits."""
    engine = open_engine(built.plan.container, built.path, context=_longest(sealed))
    try:
        with progress.step(f"{built.plan.container.upper()}: coherence in {engine.name}") as advance:
            coherence = metrics.evaluate(engine, sealed, progress=advance)
    finally:
        engine.close()
    verdict = gates.judge(coherence, coherence_limits(target, built.plan.bits))
    return Result(built, predict(checkpoint.spec, built.plan, target), found, truncation_kl, coherence, verdict)


def _longest(sealed: reference.Reference) -> int:
    texts = max(len(ids) for ids in sealed.sequences.lists())
    prompts = max((len(ids) for ids in sealed.prompts.lists()), default=0) + sealed.meta.token_limit
    return max(texts, prompts)


def _samples(
    sealed: reference.Reference, tokenizer: Tokenizer, built: Sequence[Built], progress: Progress
) -> list[reports.Sample]:
    """The first prompts' continuations side by side, for a person to read."""
    prompts = sealed.prompts.lists()[:SAMPLES]
    said: list[dict[str, str]] = [{} for _ in prompts]
    with progress.step("samples"):
        for item in built:
            engine = open_engine(item.plan.container, item.path, context=_longest(sealed))
            for index, ids in enumerate(prompts):
                tokens = list(greedy(engine, ids, sealed.meta.token_limit, sealed.stop))
                said[index][item.plan.container] = tokenizer.decode(tokens)
            engine.close()
    originals = [tokenizer.decode(ids.tolist()) for ids in sealed.continuations.lists()[:SAMPLES]]
    questions = [prompt.text for prompt in text.fixed_prompts()[:SAMPLES]]
    return [
        reports.Sample(prompt=question, original=original, artefacts=texts)
        for question, original, texts in zip(questions, originals, said, strict=True)
    ]


def _write_reports(report: reports.Report, folder: Path) -> None:
    from edgekit.report.html import render

    (folder / "report.json").write_bytes(reports.to_json(report))
    (folder / "report.html").write_text(render(report), encoding="utf8")


__all__ = ["Options", "build", "bundle_name", "plans"]
