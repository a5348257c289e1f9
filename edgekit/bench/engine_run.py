"""One engine of a bundle: every figure of a protocol, one after the other, up to the first failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from edgekit.bench import ab, measure, site, sweep
from edgekit.bench.child import Judge, Open
from edgekit.bench.coherence import asked
from edgekit.bench.held import number_formats
from edgekit.bench.latency import QUESTION
from edgekit.bench.measure import Bench
from edgekit.bench.result import (
    Decode,
    DeviceCoherence,
    EngineRun,
    Failure,
    Format,
    Loading,
    Mode,
    Prefill,
    Settings,
    SweepPoint,
    Talk,
    Turns,
)
from edgekit.bench.site import Run
from edgekit.bench.worker import EngineDied, Lazy, Start
from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import Artefact
from edgekit.bundle.paths import plain
from edgekit.bundle.said import said_of
from edgekit.bundle.tokenizer import Tokenizer
from edgekit.coherence.reference import Reference
from edgekit.errors import EdgekitError, OutOfMemoryError, TokenizerError
from edgekit.machine import cores
from edgekit.progress import Progress
from edgekit.report.model import Report
from edgekit.targets import Target

T = TypeVar("T")
_TALK_PROMPT = 256
"""Tokens that the question of an answer end to end takes at most, chat template included."""
_SWEEP_TOKENS = 128
_PACKAGES = {"gguf": "llama-cpp-python", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class Against:
    """What a run needs of the bundle that it is measured in turns with."""

    bundle: Bundle
    tokenizer: Tokenizer
    reference: Reference | None


@dataclass(frozen=True)
class Job:
    """What a run needs of its bundle."""

    bundle: Bundle
    target: Target
    bench: Bench
    run: Run
    progress: Progress
    start: Start
    threads: int
    tokenizer: Tokenizer
    reference: Reference | None
    report: Report | None
    against: Against | None = None


def run_engine(job: Job, artefact: Artefact) -> EngineRun:
    """Every figure of one artefact, up to the first failure."""
    form, threads = artefact.format, cores()
    files = [entry.size for path, entry in job.bundle.manifest.files.items() if path.startswith(artefact.path)]
    guess = Settings(prefill_threads=threads, decode_threads=threads, context=1, by="target")
    parts: dict[str, Any] = {"settings": guess}
    try:
        for name, value in _parts(job, artefact):
            parts[name] = value  # noqa: PERF403 — a failure ends it, and what came before counts
    except EngineDied as died:
        parts["failure"] = _failure(died)
    except EdgekitError as error:
        parts["failure"] = _failure(error)
    return EngineRun(
        format=form, engine=_named(artefact.engine, parts.get("loading", ())),
        version=site.versions().get(_PACKAGES[form], "unknown"),
        artefact=artefact.path, bytes=sum(files), requested_bits=artefact.requested_bits,
        effective_bits=artefact.effective_bits, types=number_formats(artefact)[:64], **parts,
    )  # fmt: skip


def _named(engine: str, loaded: Sequence[Loading]) -> str:
    """The engine, and where it computed unless that is the CPU it was built for: such runs never share a name."""
    where = loaded[0].processor if loaded else ""
    return engine if where in ("", "CPU") else f"{engine} {where}"


def _failure(ended: EngineDied | EdgekitError) -> Failure:
    crashed = isinstance(ended, EngineDied)
    error = ended.error if isinstance(ended, EngineDied) else ended
    starved = isinstance(error, OutOfMemoryError)
    return Failure(
        kind="out of memory" if starved else "crash" if crashed else "error", sentence=error.sentence(),
        exit_code=error.exit_code, resident_mib=ended.resident_mib if isinstance(ended, EngineDied) else None,
    )  # fmt: skip


def _parts(job: Job, artefact: Artefact) -> Iterator[tuple[str, Any]]:
    """Fields of EngineRun as they become known; those with several values come again as they grow."""
    form, protocol = artefact.format, job.bench.protocol
    notes: list[str] = []
    guess = sweep.first_guess(job.target, form, cores())
    if job.threads:
        guess = sweep.Choice(job.threads, job.threads)
    if not set(guess.affinity) <= set(site.allowed_cpus()):
        notes.append("not pinned: this machine does not have, or does not allow, the target's CPUs")
        guess = sweep.Choice(guess.prefill, guess.decode)
    loaded: tuple[Loading, ...] = ()
    for loaded in _loadings(job, artefact, guess):
        yield "loading", loaded
    context = loaded[0].context
    lengths = measure.fitting(protocol, context)
    if left := set(protocol.prompt_lengths) - set(lengths):
        notes.append(f"prompts of {', '.join(map(str, sorted(left)))} tokens do not fit the context of {context}")
    text = _text(job, max(lengths))
    tried: tuple[SweepPoint, ...] = ()
    for tried in _sweep(job, artefact, min(_SWEEP_TOKENS, max(lengths)), text):
        yield "sweep", tried
    choice = sweep.choose(form, guess, tried)
    mode = _mode(job.target, form)
    yield "settings", Settings(
        prefill_threads=choice.prefill, decode_threads=choice.decode, affinity=choice.affinity, mode=mode,
        context=context, by="option" if job.threads else "target" if choice == guess else "sweep",
    )  # fmt: skip
    yield "notes", tuple(notes)
    with Lazy(job.start, _open(job, artefact, choice, mode)) as worker:
        yield from _speeds(job, form, worker, lengths, text, context, notes)
        yield "notes", tuple(notes)
        if job.reference is not None:
            yield "coherence", _coherence(job, form, worker, job.reference)
    if job.against and form in job.against.bundle.artefacts:
        yield "turns", _turns(job, job.against, artefact, _open(job, artefact, choice, mode))
    elif job.against:
        notes.append(f"not measured in turns: {plain(job.against.bundle.manifest.name)} holds no {form.upper()}")
        yield "notes", tuple(notes)


def _sweep(job: Job, artefact: Artefact, tokens: int, text: str) -> Iterator[tuple[SweepPoint, ...]]:
    """What was tried so far, point by point; nothing where the user chose, or where speeds mean nothing."""
    if job.threads or not job.bench.protocol.sweep or job.bench.kind == "emulated":
        return
    tried: list[SweepPoint] = []
    pairs, mode = sweep.points(job.target, site.allowed_cpus(), cores()), _mode(job.target, artefact.format)
    with job.progress.step(f"{artefact.format.upper()}: threads") as advance:
        for threads, cpus in pairs:
            request = _open(job, artefact, sweep.Choice(threads, threads, cpus), mode)
            tried.append(_swept_point(job, artefact.format, request, text, tokens))
            advance(len(tried), len(pairs))
            yield tuple(tried)


def _swept_point(job: Job, form: Format, request: Open, text: str, tokens: int) -> SweepPoint:
    def point() -> SweepPoint:
        worker = job.start()
        try:
            return measure.sweep_point(job.bench, worker, request, text, tokens)
        finally:
            worker.close()

    cpus = ".".join(map(str, request.affinity)) or "any"
    return job.run.once(f"{form}/sweep/{request.threads}/{cpus}", SweepPoint, point)


def _loadings(job: Job, artefact: Artefact, guess: sweep.Choice) -> Iterator[tuple[Loading, ...]]:
    """Mapped and copied where the engine can, the target's own way first."""
    form, own = artefact.format, _mode(job.target, artefact.format)
    modes: list[Mode | None] = [own]
    if own and job.bench.protocol.load_modes:
        modes.append("copy" if own == "mmap" else "mmap")
    done: list[Loading] = []
    for mode in modes:
        request = _open(job, artefact, guess, mode)
        todo = _bound(measure.loading, job.bench, job.start, request, mode, lambda tokens: _text(job, tokens))
        with job.progress.step(f"{form.upper()}: load{f' ({mode})' if mode else ''}"):
            done.append(job.run.once(f"{form}/load/{mode or 'own'}", Loading, todo))
        yield tuple(done)


def _bound(function: Callable[..., T], *arguments: Any) -> Callable[[], T]:
    return lambda: function(*arguments)


def _speeds(
    job: Job, form: Format, worker: Lazy, lengths: Sequence[int], text: str, context: int, notes: list[str]
) -> Iterator[tuple[str, Any]]:
    bench, run, name = job.bench, job.run, form.upper()
    read: list[Prefill] = []
    for tokens in lengths:
        with job.progress.step(f"{name}: prompt of {tokens} tokens"):
            todo = _bound(measure.prefill, bench, worker, text, tokens)
            read.append(run.once(f"{form}/prefill/{tokens}", Prefill, todo))
        yield "prefill", tuple(read)
    tokens = min(bench.protocol.decode_tokens, context)
    with job.progress.step(f"{name}: generate {tokens} tokens"):
        yield "decode", run.once(f"{form}/decode/{tokens}", Decode, _bound(measure.decode, bench, worker, tokens))
    if context < _TALK_PROMPT:
        notes.append(f"no answer end to end: the model's context of {context} tokens is too small for it")
        return
    with job.progress.step(f"{name}: answer"):
        yield "talk", run.once(f"{form}/talk", Talk, _bound(measure.talk, bench, worker))


def _coherence(job: Job, form: Format, worker: Lazy, reference: Reference) -> DeviceCoherence:
    host, recorded = _said_on_host(job.report, form)
    request = Judge(
        reference=str(job.bundle.reference), asked=asked(job.bench.protocol), host=host,
        host_ids=said_of(job.bundle, form),
    )  # fmt: skip
    with job.progress.step(f"{form.upper()}: coherence") as tell:
        todo = _bound(measure.coherence, job.bench, worker, request, recorded, tell)
        return job.run.once(f"{form}/coherence", DeviceCoherence, todo)


def _turns(job: Job, against: Against, artefact: Artefact, request: Open) -> Turns:
    """Against the other bundle, after everything else: what goes wrong there takes nothing from what was measured."""
    form, other = artefact.format, against.bundle
    longest = max(job.bench.protocol.prompt_lengths)
    theirs = msgspec.structs.replace(request, path=str(other.artefacts[form]), tokenizer=str(other.tokenizer))
    sides = (
        ab.Side(request, _text(job, longest)),
        ab.Side(theirs, prompt_text(against.tokenizer, against.reference, longest)),
    )

    def once(number: int, measured: Callable[[], ab.Round]) -> ab.Round:
        return job.run.once(f"{form}/turns/{number}", ab.Round, measured)

    with job.progress.step(f"{form.upper()}: in turns") as tell:
        try:
            return ab.in_turns(job.bench, job.start, *sides, once, tell)
        except (EngineDied, EdgekitError) as ended:
            return Turns(failure=_failure(ended))


def _said_on_host(report: Report | None, form: Format) -> tuple[tuple[str, ...], float | None]:
    """Texts of the artefact's greedy continuations of the reference's first prompts, and its mean KL divergence."""
    if report is None:
        return (), None
    texts = tuple(sample.artefacts[form] for sample in report.samples if form in sample.artefacts)
    recorded = next((one.coherence.kl_mean for one in report.artefacts if one.format == form), None)
    return texts, recorded


def _mode(target: Target, form: Format) -> Mode | None:
    return target.runtime.gguf.load_mode if form == "gguf" else None


def _text(job: Job, tokens: int) -> str:
    return prompt_text(job.tokenizer, job.reference, tokens)


def _open(job: Job, artefact: Artefact, choice: sweep.Choice, mode: Mode | None) -> Open:
    protocol = job.bench.protocol
    longest = job.reference.longest if job.reference else 0
    context = max(*protocol.prompt_lengths, protocol.decode_tokens, _TALK_PROMPT + protocol.talk_tokens, longest)
    return Open(
        format=artefact.format, path=str(job.bundle.root / artefact.path), tokenizer=str(job.bundle.tokenizer),
        threads=choice.decode, prefill_threads=choice.prefill, affinity=choice.affinity, context=context,
        mmap=None if mode is None else mode == "mmap",
    )  # fmt: skip


def prompt_text(tokenizer: Tokenizer, reference: Reference | None, tokens: int) -> str:
    """Text of at least `tokens` tokens and little more: the reference's, over and over."""
    text = "" if reference is None else tokenizer.decode(reference.sequences.ids.tolist()).strip()
    text = text or QUESTION
    if not (found := len(tokenizer.encode(text))):
        raise TokenizerError("the tokenizer gives no tokens for a text", remedy="build the bundle again")
    text = " ".join([text] * (tokens // found + 2))
    # Reading much more than is used would be counted as tokenising.
    share = len(text) * tokens // (found * (tokens // found + 2)) + 1
    while share < len(text) and len(tokenizer.encode(text[:share])) < tokens:
        share += max(1, share // 20)
    return text[:share]
